-- Logins that ended before their tokens did: of one session, or (session empty) all of a subject that began before `at`.
CREATE TABLE ended_session (
  authenticator {TEXT} NOT NULL,
  session {TEXT} NOT NULL,
  subject {TEXT} NOT NULL,
  -- Tokens that were issued until then count no more.
  at BIGINT NOT NULL,
  told_at BIGINT NOT NULL,
  -- The last of those tokens has expired by then.
  until BIGINT NOT NULL,
  PRIMARY KEY (authenticator, session, subject)
);
CREATE INDEX ended_session_told ON ended_session (told_at);
CREATE INDEX ended_session_until ON ended_session (until);
