//! `create --make-key` and `config` of what WireGuard clients are: VPN networks and peers. Private keys are made here, stay
//! in files of the one who asks, and are never sent.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::ArgMatches;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use rhyzome_client::{Kind, Resource};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::Value;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{Context, Usage, body, switch, text};

/// Makes one; its keys too, if that is asked for.
pub async fn create(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let mut body = body::create(context.kinds, kind, leaf)?;
    let mut made: Vec<PathBuf> = Vec::new();
    if let Some(file) = text(leaf, "make-key").map(PathBuf::from) {
        if !body["spec"]["public_key"].is_null() {
            return Err(Usage("say --make-key or --public-key, not both".into()).into());
        }
        let key = fresh(true)?;
        keep(&file, &key)?;
        body["spec"]["public_key"] = public_half(&key, &file)?.into();
        made.push(file);
    }
    if let Some(file) = text(leaf, "make-preshared-key").map(PathBuf::from) {
        let key = fresh(false)?;
        if let Err(error) = keep(&file, &key) {
            forget(&made);
            return Err(error);
        }
        body["spec"]["preshared_key"] = key.as_str().into();
        made.push(file);
    }
    let path = context.path(kind);
    match context.client.create(&path, body).await {
        Ok(written) => context.settle(written, &path, "create", leaf).await,
        // Refused: nobody knows these keys. Otherwise it may be there all the same, and they are needed.
        Err(error @ rhyzome_client::Error::Problem(_)) => {
            forget(&made);
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Prints the file that `wg-quick` takes.
pub async fn config(context: &Context<'_>, kind: &Kind, leaf: &ArgMatches) -> anyhow::Result<()> {
    let name = text(leaf, "name").unwrap_or_default();
    let found = context.client.get(&format!("{}/{name}", context.path(kind))).await;
    let found: Resource = found.map_err(|error| context.missing(kind, &name, error))?;
    let keys = Keys {
        private: text(leaf, "key").map(|file| read(Path::new(&file))).transpose()?,
        preshared: text(leaf, "preshared-key").map(|file| read(Path::new(&file))).transpose()?,
        endpoint: text(leaf, "endpoint"),
    };
    let whole = Zeroizing::new(conf(&found, &keys)?);
    if switch(leaf, "qr") {
        if keys.private.is_none() {
            return Err(Usage("a QR code is of no use without the private key: say --key FILE".into()).into());
        }
        let code = QrCode::with_error_correction_level(whole.as_bytes(), EcLevel::L);
        let code = code.context("too much for a QR code")?;
        say!("{}", code.render::<Dense1x2>().quiet_zone(true).build());
        return Ok(());
    }
    if let Some(file) = text(leaf, "file") {
        keep(Path::new(&file), &whole)?;
        say!("written to {file}: `wg-quick up {file}` brings the tunnel up");
        return Ok(());
    }
    say!("{}", whole.trim_end());
    Ok(())
}

/// What only the client has.
#[derive(Default)]
struct Keys {
    private: Option<Zeroizing<String>>,
    preshared: Option<Zeroizing<String>>,
    endpoint: Option<String>,
}

/// The file, from what the server knows and what the client has.
fn conf(found: &Resource, keys: &Keys) -> anyhow::Result<String> {
    let config = &found.status["config"];
    let word = |key: &str| config[key].as_str().filter(|text| !text.is_empty());
    let (Some(address), Some(server)) = (word("address"), word("server_public_key")) else {
        anyhow::bail!("{} `{}` has no address yet: wait for its job", found.kind, found.name);
    };
    let mut file = format!("# {} {} of tenant {}\n[Interface]\n", found.kind, found.name, found.tenant);
    match &keys.private {
        Some(key) if Some(&*public_half(key, Path::new("--key"))?) != found.spec["public_key"].as_str() => {
            anyhow::bail!("--key: this is another key: its public half is not that of `{}`", found.name);
        }
        Some(key) => file.push_str(&format!("PrivateKey = {}\n", key.as_str())),
        None => file.push_str("# PrivateKey = yours; or say --key FILE\n"),
    }
    file.push_str(&format!("Address = {address}\n"));
    let resolvers: Vec<&str> = ["dns", "domain"].into_iter().filter_map(word).collect();
    if !resolvers.is_empty() {
        file.push_str(&format!("DNS = {}\n", resolvers.join(", ")));
    }
    if let Some(mtu) = config["mtu"].as_u64() {
        file.push_str(&format!("MTU = {mtu}\n"));
    }
    file.push_str(&format!("\n[Peer]\nPublicKey = {server}\n"));
    match (&keys.preshared, found.spec["preshared_key"].is_string()) {
        (Some(key), true) => file.push_str(&format!("PresharedKey = {}\n", key.as_str())),
        (Some(_), false) => anyhow::bail!("--preshared-key: `{}` has none", found.name),
        (None, true) => file.push_str("# PresharedKey = yours; or say --preshared-key FILE\n"),
        (None, false) => {}
    }
    let allowed: Vec<&str> =
        config["allowed_ips"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    file.push_str(&format!("AllowedIPs = {}\n", allowed.join(", ")));
    match keys.endpoint.as_deref().or(word("endpoint")) {
        Some(endpoint) => file.push_str(&format!("Endpoint = {endpoint}\n")),
        None => file.push_str("# Endpoint = the server dials; or say --endpoint HOST:PORT\n"),
    }
    if let Some(seconds) = found.spec["keepalive_seconds"].as_u64().filter(|seconds| *seconds > 0) {
        file.push_str(&format!("PersistentKeepalive = {seconds}\n"));
    }
    Ok(file)
}

// === keys ===

/// A new key, as `wg genkey` prints it; or any 32 bytes, as `wg genpsk` does.
fn fresh(private: bool) -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    let filled = SystemRandom::new().fill(bytes.as_mut_slice());
    filled.map_err(|_| anyhow::anyhow!("this machine gives no random numbers"))?;
    if private {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
    }
    Ok(Zeroizing::new(BASE64_STANDARD.encode(bytes.as_slice())))
}

fn public_half(key: &str, from: &Path) -> anyhow::Result<String> {
    let bytes = BASE64_STANDARD.decode(key).ok().map(Zeroizing::new);
    let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
    let bytes =
        bytes.with_context(|| format!("{}: no WireGuard key (32 bytes in base64)", from.display()))?;
    Ok(BASE64_STANDARD.encode(PublicKey::from(&StaticSecret::from(bytes)).as_bytes()))
}

fn read(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let text = Zeroizing::new(text);
    public_half(text.trim(), file)?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// Into a new file that nobody else can read.
fn keep(file: &Path, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut opened = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            anyhow::bail!("{} is there already: nothing was written over; say another file", file.display())
        }
        opened => opened.with_context(|| file.display().to_string())?,
    };
    opened.write_all(text.trim_end().as_bytes())?;
    opened.write_all(b"\n")?;
    opened.sync_all().with_context(|| file.display().to_string())
}

fn forget(files: &[PathBuf]) {
    for file in files {
        if let Err(error) = std::fs::remove_file(file) {
            eprintln!("rhyzome: {}: {error}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::json;

    use super::*;

    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    fn found(change: Value) -> Resource {
        let mut whole = json!({
            "id": "wgp_1", "kind": "wireguard-peer", "tenant": "default", "name": "laptop", "tags": {}, "metadata": {},
            "generation": 1, "version": 1, "phase": "ready", "protected": false, "created_at": "2026-11-22T08:00:00Z",
            "updated_at": "2026-11-22T08:00:00Z",
            "spec": {"server": "office", "public_key": PUBLIC, "keepalive_seconds": 25},
            "status": {"config": {
                "address": "10.99.0.2/32", "server_public_key": "KEY", "endpoint": "vpn.example.com:51820",
                "allowed_ips": ["10.99.0.0/24", "10.20.0.0/24"], "dns": "10.20.0.1", "domain": "lan.internal"
            }},
        });
        for (pointer, value) in change.as_object().unwrap() {
            match whole.pointer_mut(pointer) {
                Some(slot) => *slot = value.clone(),
                None => whole["spec"][&pointer[6..]] = value.clone(),
            }
        }
        serde_json::from_value(whole).unwrap()
    }

    fn key(text: &str) -> Option<Zeroizing<String>> {
        Some(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn a_file_is_ready_with_the_clients_keys_and_only_then() {
        let keys = Keys { private: key(PRIVATE), preshared: key(PUBLIC), endpoint: None };
        let whole = conf(&found(json!({"/spec/preshared_key": "sealed:sec_1"})), &keys).unwrap();
        let wanted = format!(
            "# wireguard-peer laptop of tenant default\n[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.99.0.2/32\n\
             DNS = 10.20.0.1, lan.internal\n\n[Peer]\nPublicKey = KEY\nPresharedKey = {PUBLIC}\n\
             AllowedIPs = 10.99.0.0/24, 10.20.0.0/24\nEndpoint = vpn.example.com:51820\nPersistentKeepalive = 25\n"
        );
        assert_eq!(whole, wanted);
        let bare = conf(&found(json!({"/status/config/endpoint": null})), &Keys::default()).unwrap();
        assert!(
            bare.contains("\n# PrivateKey")
                && bare.contains("\n# Endpoint")
                && !bare.contains("PresharedKey")
        );
    }

    #[test]
    fn another_key_and_none_at_all_are_refused() {
        let why = |found: &Resource, keys: &Keys| conf(found, keys).unwrap_err().to_string();
        let other = Keys { private: key(PUBLIC), ..Keys::default() };
        assert!(why(&found(json!({})), &other).contains("another key"));
        let nonsense = Keys { private: key("hush"), ..Keys::default() };
        assert!(why(&found(json!({})), &nonsense).contains("no WireGuard key"));
        let shared = Keys { preshared: key(PRIVATE), ..Keys::default() };
        assert!(why(&found(json!({})), &shared).contains("has none"));
        assert!(why(&found(json!({"/status/config": {}})), &Keys::default()).contains("no address yet"));
    }

    #[test]
    fn keys_are_made_here_and_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("laptop.key");
        let made = fresh(true).unwrap();
        keep(&file, &made).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(*read(&file).unwrap(), *made);
        assert_ne!(*fresh(true).unwrap(), *made);
        assert!(keep(&file, "x").unwrap_err().to_string().contains("there already"));
        assert_eq!(public_half(PRIVATE, &file).unwrap(), PUBLIC);
    }
}
