//! `cargo xtask keycloak`: a real Keycloak for the tests, from Maven Central by Maven itself, prepared once.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use crate::packages;
use crate::run;
use crate::world::{Answering, Process, Style, free_address};

const VERSION: &str = "26.0.7";
/// Of the archive: another one is not unpacked.
const SHA256: &str = "a6d770bbf55625781f1225a54a130839cdc1dd4ad5b3b4bbb18c9ac8bca8f8ae";
/// The plugin of Maven that fetches it.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";
/// Java takes its time, and more of it on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Who may do everything in a Keycloak that was started here.
pub const ADMIN: (&str, &str) = ("admin", "admin-of-a-test");

/// Fetches it and prepares it, unless that was done; where it is.
pub fn prepared(install: bool) -> Result<PathBuf> {
    packages::ensure(&[packages::KEYCLOAK], install)?;
    let folder = crate::repository().join("var/keycloak");
    let home = folder.join(format!("keycloak-{VERSION}"));
    let ready = home.join("ready");
    if fs::read_to_string(&ready).is_ok_and(|sum| sum == SHA256) {
        return Ok(home);
    }
    if home.exists() {
        // Somebody was stopped on the way.
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir_all(&folder)?;
    let archive = folder.join(format!("keycloak-quarkus-dist-{VERSION}.tar.gz"));
    if !is_it(&archive)? {
        println!("fetching Keycloak {VERSION}, 140 MiB");
        let artifact = format!("-Dartifact=org.keycloak:keycloak-quarkus-dist:{VERSION}:tar.gz");
        let out = format!("-DoutputDirectory={}", folder.display());
        run::output(Command::new("mvn").args(["--batch-mode", "--quiet", PLUGIN, &artifact, &out]))?;
    }
    if !is_it(&archive)? {
        bail!("{} is not the archive that is meant: its SHA-256 is another", archive.display());
    }
    run::output(Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(&folder))?;
    run::output(Command::new(home.join("bin/kc.sh")).args(["build", "--db=dev-mem"]))?;
    fs::write(&ready, SHA256)?;
    Ok(home)
}

fn is_it(archive: &Path) -> Result<bool> {
    if !archive.exists() {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    std::io::copy(&mut fs::File::open(archive)?, &mut hash)?;
    let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(sum == SHA256)
}

/// Starts it on a free port of 127.0.0.1, in memory only, without any realm but its own. Its log goes to `folder`.
pub fn start(home: &Path, folder: &Path) -> Result<Answering> {
    let address = free_address()?;
    let words = [
        home.join("bin/kc.sh").display().to_string(),
        "start".into(),
        "--optimized".into(),
        // Alone: it looks for no others, by whatever address this machine has just then.
        "--cache=local".into(),
        "--http-enabled=true".into(),
        "--http-host=127.0.0.1".into(),
        format!("--http-port={}", address.port()),
        format!("--hostname=http://{address}"),
    ];
    let environment = [
        ("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN.0),
        ("KC_BOOTSTRAP_ADMIN_PASSWORD", ADMIN.1),
        ("JAVA_OPTS_APPEND", "-Xmx512m -XX:TieredStopAtLevel=1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let process = Process::new("keycloak", folder, words.to_vec(), Style::default());
    Answering::start(process.with_environment(environment), address, "/realms/master", PATIENCE)
}

/// The issuer of a realm of the one that runs there.
pub fn issuer(address: SocketAddr, realm: &str) -> String {
    format!("http://{address}/realms/{realm}")
}
