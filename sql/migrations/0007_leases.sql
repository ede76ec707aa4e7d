-- What is restarted on another node when its own is lost; which nodes are; and who has been told to let go of what was
-- taken from it, and need not be waited for, because it runs nothing of it without a lease.

ALTER TABLE placement ADD COLUMN restart BIGINT NOT NULL DEFAULT 0;
CREATE INDEX placement_restart ON placement (node, holder) WHERE restart = 1;
ALTER TABLE node_state ADD COLUMN lost BIGINT NOT NULL DEFAULT 0;
CREATE INDEX node_state_away ON node_state (node) WHERE connected = 0;
ALTER TABLE assignment ADD COLUMN fenced BIGINT NOT NULL DEFAULT 0;
