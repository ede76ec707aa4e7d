-- The open jobs of an object, and those that await one, are found by indexes of which a planner cannot think that
-- another index of open jobs would do as well. It thinks so when it last counted while no job was open.
DROP INDEX job_open;
CREATE INDEX job_open ON job ((CASE WHEN finished_at IS NULL THEN resource END), id);
DROP INDEX job_awaits;
UPDATE job SET awaits = NULL WHERE finished_at IS NOT NULL AND awaits IS NOT NULL;
CREATE INDEX job_awaits ON job (awaits) WHERE awaits IS NOT NULL;
