-- Secrets, sealed by keys that are not in the database; specs hold their markers. And what webhooks have delivered.

CREATE TABLE secret (
  id {TEXT} NOT NULL PRIMARY KEY,
  holder {TEXT} NOT NULL REFERENCES resource (id),
  -- `spec.secret`.
  field {TEXT} NOT NULL,
  -- Name of the key that sealed it.
  key {TEXT} NOT NULL,
  sealed {BYTES} NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE INDEX secret_holder ON secret (holder);
CREATE INDEX secret_key ON secret (key, id);

-- How far each webhook is in the log, and which server delivers for it. Every write says `WHERE epoch =`.
CREATE TABLE webhook_state (
  webhook {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  -- The last entry of the log that is done with.
  seq BIGINT NOT NULL,
  -- Of the next one to be delivered: how often it was tried, since when, and when it is to be tried again.
  attempts BIGINT NOT NULL,
  first_at BIGINT,
  due_at BIGINT NOT NULL,
  -- Tries that failed since the last one that did not.
  failures BIGINT NOT NULL,
  failing_since BIGINT,
  -- Number of the last row in `webhook_delivery`.
  number BIGINT NOT NULL,
  holder {TEXT} NOT NULL,
  epoch BIGINT NOT NULL
);
CREATE INDEX webhook_state_holder ON webhook_state (holder);

-- The last tries of each webhook.
CREATE TABLE webhook_delivery (
  webhook {TEXT} NOT NULL REFERENCES resource (id),
  number BIGINT NOT NULL,
  -- The entry of the log; 0 for a test.
  seq BIGINT NOT NULL,
  message {TEXT} NOT NULL,
  type {TEXT} NOT NULL,
  attempt BIGINT NOT NULL,
  at BIGINT NOT NULL,
  took_ms BIGINT NOT NULL,
  -- `delivered`, `failed`, `given-up`.
  outcome {TEXT} NOT NULL,
  -- What was answered; 0: nothing.
  status BIGINT NOT NULL,
  detail {TEXT} NOT NULL,
  PRIMARY KEY (webhook, number)
);
