//! `rhyzome-api audit`: proves the event log, straight on the database, also while the server runs; empties what
//! must be forgotten.

use std::path::Path;

use anyhow::Context as _;
use rhyzome_pki::LogKey;

use crate::admin;
use crate::config::Config;
use crate::store::{Proof, Seal};

/// The key that signs checkpoints, in the folder of data.
const KEY_FILE: &str = "log.key";

struct KeyOfFile(LogKey);

impl Seal for KeyOfFile {
    fn key(&self) -> String {
        self.0.name().to_owned()
    }

    fn sign(&self, message: &[u8]) -> String {
        self.0.sign(message)
    }

    fn is_ours(&self, message: &[u8], signature: &str) -> bool {
        self.0.verify(message, signature)
    }
}

/// The key of this folder, made if there is none.
pub fn seal(data: &Path) -> anyhow::Result<impl Seal + use<>> {
    Ok(KeyOfFile(LogKey::open_or_create(&data.join(KEY_FILE))?))
}

/// Reads the whole log of the configured database and checks it.
pub async fn verify(config: &Config) -> anyhow::Result<Proof> {
    let store = admin::beside(config).await?;
    let key = config.data.join(KEY_FILE);
    let seal = KeyOfFile(LogKey::open(&key).context("the key that signs the log")?);
    Ok(store.prove_log(&seal).await?)
}

/// Takes out of the log what it says of one actor; how many entries that were.
pub async fn erase(config: &Config, actor: &str) -> anyhow::Result<u64> {
    Ok(admin::beside(config).await?.erase_log(actor).await?)
}

/// What was found, for people.
pub fn report(proof: &Proof) -> String {
    let mut lines = proof.faults.clone();
    let entries = proof.last - proof.first + 1;
    lines.push(match proof.faults.len() {
        0 if entries == 0 => "the log is empty".to_owned(),
        0 => format!("the log is whole: {entries} entries, {} to {}", proof.first, proof.last),
        faults => format!("the log is not whole: {faults} fault(s)"),
    });
    if proof.faults.is_empty() && entries > 0 {
        lines.push(format!(
            "{} signed checkpoints; {} entries behind the last",
            proof.checkpoints, proof.unsigned
        ));
        if proof.erased > 0 {
            lines.push(format!("the content of {} entries was erased", proof.erased));
        }
        lines.push(format!("the hash of entry {} is {}", proof.last, proof.hash));
    }
    lines.join("\n")
}
