-- Passwords of the roles in ../postgres/roles.sql, from the environment. compose.yaml runs both files in a new
-- database.
\getenv owner OWNER_PASSWORD
\getenv application APPLICATION_PASSWORD
ALTER ROLE srm_owner PASSWORD :'owner';
ALTER ROLE srm_application PASSWORD :'application';
