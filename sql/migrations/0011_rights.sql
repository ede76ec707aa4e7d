-- Who made an object; empty: no user.
ALTER TABLE resource ADD COLUMN owner {TEXT} NOT NULL DEFAULT '';

-- Who a user is to an authenticator. An empty subject waits for the first login under this name.
CREATE TABLE identity (
  holder {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  authenticator {TEXT} NOT NULL,
  subject {TEXT} NOT NULL,
  username {TEXT} NOT NULL,
  -- JSON: as the authenticator said at the last login.
  groups {TEXT} NOT NULL
);
CREATE UNIQUE INDEX identity_subject ON identity (authenticator, subject) WHERE subject <> '';
CREATE INDEX identity_username ON identity (username, authenticator);

-- Whom members and bindings are about: `user usr_1`, `group corp admins`, `all corp`.
CREATE TABLE grantee (
  subject {TEXT} NOT NULL,
  holder {TEXT} NOT NULL REFERENCES resource (id),
  tenant {TEXT} NOT NULL,
  role {TEXT} NOT NULL,
  PRIMARY KEY (subject, holder)
);
CREATE INDEX grantee_holder ON grantee (holder);
CREATE INDEX grantee_role ON grantee (tenant, role, holder);

-- What is known of the secrets of API tokens.
CREATE TABLE api_token (
  holder {TEXT} NOT NULL PRIMARY KEY REFERENCES resource (id),
  -- Hex SHA-256.
  hash {TEXT} NOT NULL
);
CREATE UNIQUE INDEX api_token_hash ON api_token (hash);
