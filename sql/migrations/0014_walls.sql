-- A second wall between tenants, in the database itself: whoever asks on behalf of somebody says whose rows those may come
-- upon (`rhyzome.wall`: `,acme,beta,`, or `*` for all), and other tenants' rows are not there for them. What operators own
-- is under no tenant's name, and is seen by all: it is the first wall, the policy of the program, that keeps it.
-- SQLite has no such thing: this is PostgreSQL's alone.
--{POSTGRES
ALTER TABLE resource ENABLE ROW LEVEL SECURITY;
ALTER TABLE resource FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON resource USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE live ENABLE ROW LEVEL SECURITY;
ALTER TABLE live FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON live USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE label ENABLE ROW LEVEL SECURITY;
ALTER TABLE label FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON label USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE job ENABLE ROW LEVEL SECURITY;
ALTER TABLE job FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON job USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE event ENABLE ROW LEVEL SECURITY;
ALTER TABLE event FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON event USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE event_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_log FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON event_log USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE grantee ENABLE ROW LEVEL SECURITY;
ALTER TABLE grantee FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON grantee USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*' OR tenant = ''
  OR strpos((SELECT current_setting('rhyzome.wall', true)), ',' || tenant || ',') > 0
);
ALTER TABLE quota ENABLE ROW LEVEL SECURITY;
ALTER TABLE quota FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON quota USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*'
  OR EXISTS (SELECT 1 FROM resource r WHERE r.id = quota.tenant
    AND strpos((SELECT current_setting('rhyzome.wall', true)), ',' || r.name || ',') > 0)
);
ALTER TABLE quota_use ENABLE ROW LEVEL SECURITY;
ALTER TABLE quota_use FORCE ROW LEVEL SECURITY;
CREATE POLICY wall ON quota_use USING (
  (SELECT current_setting('rhyzome.wall', true)) = '*'
  OR EXISTS (SELECT 1 FROM resource r WHERE r.id = quota_use.tenant
    AND strpos((SELECT current_setting('rhyzome.wall', true)), ',' || r.name || ',') > 0)
);
--}
