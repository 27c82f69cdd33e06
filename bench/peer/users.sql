-- 20,000 users with a password and three sessions at once.
INSERT INTO radcheck (username, attribute, op, value)
SELECT 'u' || lpad(n::text, 6, '0'), attribute, ':=', value
FROM generate_series(1, 20000) n, (VALUES ('Cleartext-Password', 'pw'), ('Simultaneous-Use', '3')) check_items (attribute, value);

-- Debian's schema has no index for the count of open sessions; without one each access request reads the whole table.
CREATE INDEX radacct_open_user_idx ON radacct (username) WHERE acctstoptime IS NULL;
