-- What nodes find on themselves beside what they report on, what operators decide on it, and which machines they are.

-- As the node said last: written when it changed.
CREATE TABLE node_finding (
  node {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  -- JSON: every guest that runs there, and every instance there that was never ordered.
  guests {TEXT} NOT NULL,
  -- JSON: what is not as it was ordered, and what was put right.
  differences {TEXT} NOT NULL,
  said_at BIGINT NOT NULL
);

-- What operators have decided on a difference. `repair` goes with the difference, the others stay.
CREATE TABLE node_decision (
  node {TEXT} NOT NULL REFERENCES resource (id),
  -- Id of the difference.
  difference {TEXT} NOT NULL,
  -- `repair`, `ignore`, `adopt`, `forget`.
  verb {TEXT} NOT NULL,
  -- JSON: what there was to decide on; of an adopted foreign guest, the guest.
  subject {TEXT} NOT NULL,
  actor {TEXT} NOT NULL,
  decided_at BIGINT NOT NULL,
  PRIMARY KEY (node, difference)
);

-- The machine that is a node, and the processes of its agent that were heard of: JSON, written when another one comes.
CREATE TABLE node_machine (
  node {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  seen {TEXT} NOT NULL
);
