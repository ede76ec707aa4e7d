//! The database schema of the control plane, for SQLite and PostgreSQL.
