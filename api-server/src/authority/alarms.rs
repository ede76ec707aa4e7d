//! What ends soon: roots, intermediates, a certificate for REST from elsewhere. Those of nodes are watched by their
//! sessions.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rhyzome_pki::{Authority, CertificateTimes, certificate_times};

use super::{AuthorityDuty, noted, now};
use crate::kernel::Timestamp;
use crate::store::Store;

/// An authority must be exchanged, a certificate fetched anew, by people: in time for them.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// Of a certificate from elsewhere not more than this part of its life, which may be a day.
const PART: u32 = 3;

/// Something ends soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What.
    pub what: String,
    /// When.
    pub ends: SystemTime,
    /// What to do.
    pub way_out: &'static str,
}

/// All that ends within 30 days; a certificate from elsewhere: within a third of its life, if that is less.
pub fn alarms(authority: &Authority, http_certificate: Option<&Path>, now: SystemTime) -> Vec<Alarm> {
    let mut all = Vec::new();
    for generation in authority.generations() {
        let root = &generation.root_sha256[..16];
        let way_out =
            "exchange the authority: `rhyzome-api pki rotate` (one from files of your own: see docs/pki.md)";
        let both = [("root", generation.root_ends), ("intermediate of the root", generation.issuer_ends)];
        all.extend(both.map(|(kind, ends)| Alarm { what: format!("the {kind} {root}"), ends, way_out }));
    }
    all.retain(|alarm| alarm.ends < now + SOON);
    if let Some(path) = http_certificate
        && let Some(times) = times_of(path)
    {
        let life = times.not_after.duration_since(times.not_before).unwrap_or_default();
        let (what, ends) = (format!("`http.cert` ({})", path.display()), times.not_after);
        if ends < now + SOON.min(life / PART) {
            all.push(Alarm { what, ends, way_out: "renew it and restart the server" });
        }
    }
    all
}

/// What cannot be read was refused at the start, or is being written just now.
fn times_of(path: &Path) -> Option<CertificateTimes> {
    let leaf = rhyzome_pki::first_certificate(&std::fs::read_to_string(path).ok()?).ok()?;
    certificate_times(&leaf).ok()
}

/// Says what ends soon in the server's log, and, when it is something else than before, in that of the cluster.
pub(super) async fn ring(store: &Store, duty: &AuthorityDuty, before: &mut Vec<Alarm>) {
    let all = alarms(&duty.authority, duty.http_certificate.as_deref(), now(store));
    for alarm in &all {
        tracing::warn!(what = alarm.what, ends = %Timestamp::from(alarm.ends), way_out = alarm.way_out, "it ends soon");
    }
    if !all.is_empty()
        && all != *before
        && let Err(error) = noted(store, "ends-soon").await
    {
        return tracing::warn!(%error, "that something ends soon was not kept in the event log");
    }
    *before = all;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_within_a_month_is_told_with_the_way_out() {
        let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let day = Duration::from_secs(24 * 3600);
        let made = |name: &str, at| Authority::open_or_create(&folder.path().join(name), at).unwrap();
        assert_eq!(alarms(&made("new", now), None, now), []);
        let old = made("old", now - (10 * 365 - 20) * day);
        let rung = alarms(&old, None, now);
        assert!(rung.len() == 1 && rung[0].what.starts_with("the intermediate of the root"), "{rung:?}");
        assert!(rung[0].ends > now + 19 * day && rung[0].way_out.contains("pki rotate"));
        // The certificate for REST: an intermediate does as well as any other.
        let http = folder.path().join("old/intermediate.pem");
        let rung = alarms(&made("new", now), Some(&http), now);
        assert!(rung.len() == 1 && rung[0].what.starts_with("`http.cert`"), "{rung:?}");
        assert_eq!(alarms(&made("new", now), Some(Path::new("/nowhere")), now), []);
    }
}
