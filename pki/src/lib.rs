//! Certificates: authority, identities, enrolment requests, TLS configurations.
