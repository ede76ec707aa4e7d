//! Which machine and which boot of it this is, and whether the agent's folder belongs to it: a folder that was copied
//! from another machine would have two agents do the same things to different guests.

use crate::env::Env;
use crate::host::process::host_boot_id;
use crate::identity::IdentityFolder;
use crate::link::LinkEvent;
use crate::refusal;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// The machine's own name for itself, made at its installation.
const FILE: &str = "/etc/machine-id";
/// Events that wait for the owner before the link has to.
const EVENTS: usize = 256;

/// This machine, and this boot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Changes with each boot.
    pub boot_id: String,
    /// Stays for the machine's life; empty where the machine has no name for itself.
    pub machine_id: String,
}

impl Here {
    /// As it is; or as a rehearsal has it, `BOOT` or `BOOT/MACHINE`.
    pub fn of(pretend: Option<&str>) -> Self {
        let (boot, machine) = pretend.map_or((None, None), |text| match text.split_once('/') {
            Some((boot, machine)) => (Some(boot), Some(machine)),
            None => (Some(text), None),
        });
        let boot = boot.filter(|boot| !boot.is_empty());
        Self {
            boot_id: boot.map_or_else(host_boot_id, str::to_owned),
            machine_id: machine.map_or_else(machine_id, str::to_owned),
        }
    }
}

/// A digest: the machine's own name for itself is to be kept from the network.
fn machine_id() -> String {
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    match text.trim() {
        "" | "uninitialized" => String::new(),
        id => {
            let digest = Sha256::digest(format!("rhyzome machine {id}").as_bytes());
            digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
        }
    }
}

/// Stands between the link and the owner: notes why the server cannot be had, and lets nothing begin in a folder of
/// another machine.
pub struct Guard {
    state: PathBuf,
    machine_id: String,
    /// The machine that the folder was used on before, if that is another.
    before: Option<String>,
    env: Env,
}

impl Guard {
    /// For the agent's folder, on this machine.
    pub fn of(state: &Path, machine_id: &str, env: Env) -> Self {
        let before = IdentityFolder::new(state).machine();
        let before = before.filter(|before| !machine_id.is_empty() && before != machine_id);
        Self { state: state.to_owned(), machine_id: machine_id.to_owned(), before, env }
    }

    /// What the link says from now on; at once, or, where the folder is one of another machine, once a server that knows
    /// which machine is the right one has begun a session.
    pub async fn admit(self, mut link: mpsc::Receiver<LinkEvent>) -> mpsc::Receiver<LinkEvent> {
        let (passed, owner) = mpsc::channel(EVENTS);
        if let Some(before) = &self.before {
            let reason = format!(
                "cloned-state: this folder was used on the machine {before}, and this is the machine {}; nothing is \
                 done here until the server says that it is the right one",
                self.machine_id
            );
            tracing::error!("{reason}");
            refusal::note(&self.state, &reason, &self.env);
            while let Some(event) = link.recv().await {
                self.hear(&event);
                if matches!(event, LinkEvent::Connected { .. }) {
                    // There is room for the first.
                    let _ = passed.send(event).await;
                    break;
                }
            }
        }
        self.keep_machine();
        tokio::spawn(async move {
            while let Some(event) = link.recv().await {
                self.hear(&event);
                if passed.send(event).await.is_err() {
                    return;
                }
            }
        });
        owner
    }

    fn keep_machine(&self) {
        if self.machine_id.is_empty() {
            return;
        }
        let folder = IdentityFolder::new(&self.state);
        if folder.machine().as_ref() == Some(&self.machine_id) {
            return;
        }
        if let Err(error) = folder.keep_machine(&self.machine_id) {
            tracing::error!(%error, "cannot write down which machine this folder is used on");
        }
    }

    fn hear(&self, event: &LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => refusal::clear(&self.state),
            LinkEvent::Disconnected { reason } => refusal::note(&self.state, reason, &self.env),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn folder_of(machine: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("identity")).unwrap();
        IdentityFolder::new(folder.path()).keep_machine(machine).unwrap();
        folder
    }

    #[tokio::test]
    async fn a_folder_of_another_machine_waits_for_the_servers_word() {
        let folder = folder_of("one");
        let (link, events) = mpsc::channel(8);
        let guard = Guard::of(folder.path(), "two", Env::system());
        let mut admitted = tokio::spawn(guard.admit(events));
        link.send(LinkEvent::Disconnected { reason: "nobody there".into() }).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(200), &mut admitted).await;
        assert!(waited.is_err(), "nothing begins");
        assert_eq!(refusal::read(folder.path()).unwrap().name, "cloned-state");
        assert_eq!(IdentityFolder::new(folder.path()).machine().as_deref(), Some("one"));
        let connected = LinkEvent::Connected { db_epoch: 1, session: 1 };
        link.send(connected.clone()).await.unwrap();
        link.send(LinkEvent::CaughtUp(7)).await.unwrap();
        let mut owner = admitted.await.unwrap();
        assert_eq!(owner.recv().await, Some(connected));
        assert_eq!(owner.recv().await, Some(LinkEvent::CaughtUp(7)));
        assert_eq!(refusal::read(folder.path()), None);
        assert_eq!(IdentityFolder::new(folder.path()).machine().as_deref(), Some("two"));
    }

    #[tokio::test]
    async fn on_its_own_machine_it_begins_without_a_server() {
        for (before, now) in [("one", "one"), ("one", "")] {
            let folder = folder_of(before);
            let (_link, events) = mpsc::channel(8);
            Guard::of(folder.path(), now, Env::system()).admit(events).await;
            assert_eq!(IdentityFolder::new(folder.path()).machine().as_deref(), Some("one"));
        }
    }

    #[test]
    fn a_rehearsal_has_names_of_its_own() {
        assert_eq!(Here::of(Some("b1")).boot_id, "b1");
        assert_eq!(Here::of(Some("/m1")), Here { boot_id: host_boot_id(), machine_id: "m1".into() });
    }
}
