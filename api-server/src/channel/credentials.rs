//! What the agent of a session shows and trusts: kept for all to see; answered when something else counts by now; and an
//! alarm when what it shows ends soon.
use super::ChannelContext;
use super::caller::Caller;
use super::report::insist;
use super::together::Desk;
use crate::kernel::Timestamp;
use crate::store::Shown;
use rhyzome_pki::{CertificateTimes, Phase, certificate_times, issuer_key, peer_identity};
use rhyzome_proto::v1::{Credentials, Trust};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Of a text that an agent says.
const LONGEST_PROBLEM: usize = 500;
/// When the authority is exchanged, nodes ask for certificates spread over so long for each session, within these.
const SPREAD: Duration = Duration::from_millis(5);
const SPREAD_WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// An alarm when less than this part of a certificate's life is left: it should have been renewed after two thirds.
const LATE: u32 = 6;

/// What is known of one agent.
pub(super) struct Known(Mutex<State>);

struct State {
    issuer: String,
    times: CertificateTimes,
    /// Nothing: it is older than the question.
    trust: Option<String>,
    /// What it was told last: under which roots, and who signs.
    told: Option<(String, String)>,
    alarmed: bool,
}

impl Known {
    /// What its connection was made with.
    pub(super) fn of(caller: &Caller) -> Known {
        let times = CertificateTimes { not_before: caller.not_before, not_after: caller.not_after };
        Known(Mutex::new(State {
            issuer: caller.issuer.clone(),
            times,
            trust: None,
            told: None,
            alarmed: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the agent says of itself; of one that says nothing, what its connection was made with.
    pub(super) async fn hear(&self, desk: &Desk, node: &str, said: Option<Credentials>) {
        let problem = said.as_ref().map(|said| said.renewal_problem.clone()).unwrap_or_default();
        if let Some(said) = said
            && let Err(reason) = self.take(node, said)
        {
            return tracing::warn!(node, reason, "what an agent says of its certificate is not believed");
        }
        let shown = {
            let state = self.lock();
            Shown {
                issuer: state.issuer.clone(),
                trust: state.trust.clone().unwrap_or_default(),
                from: state.times.not_before.into(),
                until: state.times.not_after.into(),
                problem: problem.chars().filter(|c| *c != '\0').take(LONGEST_PROBLEM).collect(),
            }
        };
        if !shown.problem.is_empty() {
            tracing::warn!(node, problem = shown.problem, "a node has no newer certificate");
        }
        desk.shows(node, shown).await;
    }

    fn take(&self, node: &str, said: Credentials) -> Result<(), String> {
        let leaf = CertificateDer::from_pem_slice(said.certificate_pem.as_bytes())
            .map_err(|error| format!("no certificate: {error}"))?;
        let who = peer_identity(&leaf).map_err(|error| error.to_string())?;
        if who.node_id != node {
            return Err(format!("it is of another node: {}", who.node_id));
        }
        let digest = said.trust_sha256;
        if digest.len() != 64 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("the roots that it trusts are no SHA-256".to_owned());
        }
        let issuer = issuer_key(&leaf).map_err(|error| error.to_string())?;
        let times = certificate_times(&leaf).map_err(|error| error.to_string())?;
        let mut state = self.lock();
        state.alarmed &= state.times.not_after == times.not_after;
        (state.issuer, state.times, state.trust) = (issuer, times, Some(digest));
        Ok(())
    }

    /// True: it shows what an authority has signed that is trusted no more; its next connection would be refused.
    pub(super) fn has_retired(&self, context: &ChannelContext) -> bool {
        context.authority.has_retired(&self.lock().issuer)
    }

    /// What the agent is to be told, once in a session: that other roots count by now, or that others sign.
    pub(super) fn news(&self, context: &ChannelContext) -> Option<Trust> {
        let authority = &context.authority;
        let now = (authority.trust_digest(), authority.issuer_key());
        let mut state = self.lock();
        let trusts_others = state.trust.as_ref()? != &now.0;
        let shows_others = authority.phase() == Phase::Activated && state.issuer != now.1;
        if !(trusts_others || shows_others) || state.told.as_ref() == Some(&now) {
            return None;
        }
        state.told = Some(now);
        let spread = || {
            let sessions = u32::try_from(context.streams.sessions().count()).unwrap_or(u32::MAX);
            SPREAD.saturating_mul(sessions).clamp(SPREAD_WITHIN.0, SPREAD_WITHIN.1).as_millis()
        };
        let renew_within_ms = if shows_others { u32::try_from(spread()).unwrap_or(u32::MAX) } else { 0 };
        Some(Trust { trust_pem: authority.trust_pem(), renew_within_ms })
    }

    /// Tells, once for each certificate, that it ends soon and was not renewed.
    pub(super) async fn watch(&self, context: &ChannelContext, node: &str) {
        let Some(until) = self.is_late(context.now()) else { return };
        tracing::warn!(node, until = %Timestamp::from(until), "the certificate of a connected node ends soon and was not renewed");
        insist("alarm", || context.store.certificate_ends_soon(node, until.into())).await;
    }

    fn is_late(&self, now: SystemTime) -> Option<SystemTime> {
        let mut state = self.lock();
        let CertificateTimes { not_before, not_after } = state.times;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        if state.alarmed || now + life / LATE < not_after {
            return None;
        }
        state.alarmed = true;
        Some(not_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_rings_once_in_the_last_sixth() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for life in [60, 24 * 3600] {
            let caller = Caller {
                node: "node_1".into(),
                serial: "41".into(),
                issuer: "ab".into(),
                not_before: at(1000),
                not_after: at(1000 + life),
            };
            let known = Known::of(&caller);
            assert_eq!(known.is_late(at(1000 + life * 4 / 5)), None);
            assert_eq!(known.is_late(at(1000 + life * 9 / 10)), Some(at(1000 + life)));
            assert_eq!(known.is_late(at(1000 + life)), None, "once");
        }
    }
}
