-- Of an object that thousands of nodes hold: those that have not done yet what was ordered, and those that gave up. Whoever
-- waits for all of them looks at one.
CREATE INDEX assignment_behind ON assignment (object, node) WHERE remove = 0 AND applied_generation < generation;
CREATE INDEX assignment_given_up ON assignment (object, node) WHERE permanent = 1;
