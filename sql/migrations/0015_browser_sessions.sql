-- Logins of people in browsers. Of a session and of what leads to one the hash of a secret is kept, which only the browser has.
CREATE TABLE browser_session (
  -- Hex SHA-256.
  hash {TEXT} NOT NULL PRIMARY KEY,
  -- Who it is, as their authenticator said when it began: empty for the operator's token.
  authenticator {TEXT} NOT NULL,
  subject {TEXT} NOT NULL,
  username {TEXT} NOT NULL,
  -- JSON.
  groups {TEXT} NOT NULL,
  operator BIGINT NOT NULL,
  -- The tenant that they are known in alone, and the tenant by whose domain they came; empty: none.
  only_in {TEXT} NOT NULL,
  domain {TEXT} NOT NULL,
  -- The provider's name of their login; empty: it has none.
  login {TEXT} NOT NULL,
  -- What must stay the same for as long as it goes on: a hash of what stands for their password.
  mark {TEXT} NOT NULL,
  -- What its provider is shown when it ends, encrypted with the secret.
  hint {TEXT} NOT NULL,
  -- When the login was, by the clock of whoever says so.
  issued BIGINT NOT NULL,
  made_at BIGINT NOT NULL,
  seen_at BIGINT NOT NULL,
  until BIGINT NOT NULL
);
CREATE INDEX browser_session_subject ON browser_session (authenticator, subject, made_at);
CREATE INDEX browser_session_login ON browser_session (authenticator, login);
CREATE INDEX browser_session_until ON browser_session (until);

-- Browsers that were sent to a provider and are not back. Each is taken once.
CREATE TABLE browser_login (
  hash {TEXT} NOT NULL PRIMARY KEY,
  authenticator {TEXT} NOT NULL,
  domain {TEXT} NOT NULL,
  return_to {TEXT} NOT NULL,
  until BIGINT NOT NULL
);
CREATE INDEX browser_login_until ON browser_login (until);
