"""The process that ends lapsed sessions, archives ended ones and looks after partitions."""
