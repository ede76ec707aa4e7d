-- Where other servers reach this one; empty: nowhere, it holds no sessions.
ALTER TABLE server ADD COLUMN address {TEXT} NOT NULL DEFAULT '';
