//! People by their certificates, over mutual TLS. The transport proves that whoever calls has the key of the certificate
//! that they show; whether that one is good is judged here, for each request: by the authorities, the time, and the list
//! of those that were revoked. Both files are read again when they have changed.
//!
//! A certificate counts only where nothing else is shown. A node's or a server's is nobody's, whoever has signed it.

mod trust;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rhyzome_pki::{SubjectNames, subject_names};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, DistinguishedName, Error as TlsError};
use serde::Deserialize;

use self::trust::{Stamps, Trust};
use super::cache::Cache;
use super::person::{Person, Terms};
use super::{Authenticator, RequestDetails, Verdict};
use crate::kernel::Env;

/// For how long a certificate that was good is not looked at again, unless a file changes.
const REMEMBERED: Duration = Duration::from_secs(10);

/// As the configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// PEM of the authorities that sign people.
    ca: PathBuf,
    /// PEM of what they have revoked. Without it nothing is.
    crl: Option<PathBuf>,
    /// What of a certificate is somebody's name.
    #[serde(default)]
    name_from: NameFrom,
}

/// A part of a certificate's subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NameFrom {
    /// The one address of mail in the subject's alternative names.
    #[default]
    Email,
    /// The one URI there.
    Uri,
    /// The one common name.
    CommonName,
}

/// Knows people by certificates.
pub struct Certificates {
    settings: Settings,
    terms: Terms,
    env: Env,
    read: RwLock<(Stamps, Arc<Trust>)>,
    good: Cache<Stamps>,
}

impl Certificates {
    /// That of this configuration; or what is wrong with it.
    pub fn new(terms: Terms, settings: Settings, env: &Env) -> Result<Certificates, String> {
        let stamps = trust::stamps(&settings)?;
        let trust = Arc::new(trust::read(&settings)?);
        let read = RwLock::new((stamps, trust));
        Ok(Certificates { settings, terms, env: env.clone(), read, good: Cache::new(env) })
    }

    /// What the files say now. What is gone or not good lets nobody in.
    fn trust(&self) -> Result<(Stamps, Arc<Trust>), String> {
        let now = trust::stamps(&self.settings)?;
        {
            let read = self.read.read().unwrap_or_else(PoisonError::into_inner);
            if read.0 == now {
                return Ok(read.clone());
            }
        }
        let trust = Arc::new(trust::read(&self.settings)?);
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = (now, trust.clone());
        Ok((now, trust))
    }

    fn verdict(&self, chain: &[CertificateDer<'static>], request: &RequestDetails) -> Verdict {
        let Some((leaf, others)) = chain.split_first() else { return Verdict::NotMine };
        let Ok(names) = subject_names(leaf) else {
            return Verdict::Refused("your certificate cannot be read".into());
        };
        if names.uris.iter().any(|uri| uri.to_ascii_lowercase().starts_with("rhyzome:")) {
            return Verdict::Refused(
                "this is the certificate of a node or a server, and they are nobody here".into(),
            );
        }
        if !names.for_clients {
            // Many authorities give servers certificates that would do for clients, or say nothing of it.
            return Verdict::Refused(
                "your certificate is not for clients alone (extended key usage `clientAuth`)".into(),
            );
        }
        if request.from_another_site {
            // A browser shows a certificate to whatever page asks it to.
            return Verdict::Refused("a page of another site may not use your certificate".into());
        }
        let (stamps, trust) = match self.trust() {
            Ok(read) => read,
            Err(error) => return self.away(&error),
        };
        let parts: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        let print = self.good.fingerprint(&parts);
        if self.good.get(&print) != Some(stamps) {
            let now = u64::try_from(self.env.now().0 / 1_000_000).unwrap_or(0);
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            match trust.verifier.verify_client_cert(leaf, others, now) {
                Ok(_) => self.good.put(print, stamps, REMEMBERED),
                Err(error) => return self.refused(&error),
            }
        }
        self.person(names)
    }

    fn person(&self, names: SubjectNames) -> Verdict {
        let (all, what) = match self.settings.name_from {
            NameFrom::Email => (names.emails, "address of mail"),
            NameFrom::Uri => (names.uris, "URI"),
            NameFrom::CommonName => (names.common_names, "common name"),
        };
        match <[String; 1]>::try_from(all) {
            Ok([name]) => {
                let groups = names.organizational_units;
                self.terms.caller(Person { name, groups, credential: "certificate", ..Person::default() })
            }
            Err(all) => {
                Verdict::Refused(format!("your certificate must have one {what}, and has {}", all.len()))
            }
        }
    }

    fn refused(&self, error: &TlsError) -> Verdict {
        let TlsError::InvalidCertificate(why) = error else { return self.away(&error.to_string()) };
        match why {
            // It may be somebody's whom another one knows.
            CertificateError::UnknownIssuer => {
                Verdict::Wrong("nobody here knows who has signed your certificate".into())
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Verdict::Refused("your certificate has expired: ask for a new one".into())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Verdict::Refused("your certificate is not good yet".into())
            }
            CertificateError::Revoked => Verdict::Refused("your certificate was revoked".into()),
            // The list is too old, or is not theirs.
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                self.away("the list of revoked certificates is too old, or of another authority")
            }
            other => Verdict::Refused(format!("your certificate is not good: {other}")),
        }
    }

    /// In doubt, nobody.
    fn away(&self, error: &str) -> Verdict {
        tracing::error!(
            authenticator = self.terms.authenticator,
            error,
            "nobody can come in by a certificate"
        );
        Verdict::Unavailable("certificates cannot be looked at now".into())
    }
}

impl Authenticator for Certificates {
    fn serves(&self, domain: Option<&str>) -> bool {
        self.terms.serves(domain)
    }

    fn authenticate<'a>(
        &'a self,
        header: Option<&'a str>,
        request: &'a RequestDetails,
    ) -> BoxFuture<'a, Verdict> {
        let verdict = match header {
            // Whoever says who they are is judged by that.
            Some(_) => Verdict::NotMine,
            None => self.verdict(&request.certificates, request),
        };
        Box::pin(std::future::ready(verdict))
    }

    fn wants_certificates(&self) -> Option<Vec<DistinguishedName>> {
        Some(self.read.read().unwrap_or_else(PoisonError::into_inner).1.hints.clone())
    }
}
