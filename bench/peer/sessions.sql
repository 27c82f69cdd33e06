-- Leave each user with {sessions_each} open sessions, as their starts would write them.
TRUNCATE radacct, radpostauth, nasreload RESTART IDENTITY;
INSERT INTO radacct (acctsessionid, acctuniqueid, username, nasipaddress, nasportid, nasporttype, acctstarttime,
                     acctupdatetime, acctsessiontime, acctauthentic, connectinfo_start, acctinputoctets,
                     acctoutputoctets, calledstationid, callingstationid, servicetype, framedprotocol)
SELECT session, md5(username || ',' || session || ',127.0.0.1,,,1'), username, '127.0.0.1', '1', '', now(),
       now(), 0, '', '', 0, 0, '', 'aa:bb:' || session, '', ''
FROM (SELECT 'u' || lpad(n::text, 6, '0') AS username, 'b' || k || '-' || lpad(n::text, 6, '0') AS session
      FROM generate_series(1, 20000) n, generate_series(0, {sessions_each} - 1) k
      ORDER BY random()) open_sessions;
