-- What people show besides a password. Keys of apps are sealed, in `secret`.
CREATE TABLE second_factor (
  holder {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  -- The one that counts; empty: none was confirmed yet.
  secret {TEXT} NOT NULL,
  -- The one that is to be confirmed.
  pending {TEXT} NOT NULL,
  confirmed_at BIGINT NOT NULL,
  -- The step of time of the last code that was taken: neither it nor one before counts again.
  last_step BIGINT NOT NULL,
  -- When the last wrong try will have been forgotten.
  tries_until BIGINT NOT NULL
);

-- Codes for when an app is gone: hex SHA-256. Each is deleted as it is used.
CREATE TABLE recovery_code (
  holder {TEXT} NOT NULL REFERENCES resource (id),
  hash {TEXT} NOT NULL,
  PRIMARY KEY (holder, hash)
);
