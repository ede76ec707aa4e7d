-- What each node shows and trusts, and what each server trusts: so that the cluster's authority can be exchanged while
-- all of them are connected, and that nothing runs out unseen. Empty or 0: not known.
ALTER TABLE node_state ADD COLUMN issuer {TEXT} NOT NULL DEFAULT '';
ALTER TABLE node_state ADD COLUMN trust {TEXT} NOT NULL DEFAULT '';
ALTER TABLE node_state ADD COLUMN shown_from BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node_state ADD COLUMN shown_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE server ADD COLUMN trust {TEXT} NOT NULL DEFAULT '';
-- The invitations of a node that is revoked are found without reading all.
CREATE INDEX join_token_node ON join_token (node);
