//! The NoCloud seed: what a guest learns about itself at boot, as a small read-only disk labelled `cidata`.
//!
//! Files are JSON where cloud-init wants YAML: JSON is YAML, and needs no quoting rules of its own. What the guest is to
//! SSH is a script of its own in `vendor-data`: nothing that a user says in `user-data` takes its place, and it is run at
//! each boot.

use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use rhyzome_proto::v1::{InstanceOrder, InstanceSsh, OrderSecret};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

/// Room for the ISO's own structures beside the files.
const OVERHEAD_BYTES: usize = 128 * 1024;

/// The seed's files by name. Of a secret that is not among these its marker is there.
pub fn texts(instance_id: &str, order: &InstanceOrder, secrets: &[OrderSecret]) -> BTreeMap<String, String> {
    let meta = json!({
        "instance-id": instance_id,
        "local-hostname": order.hostname,
        "public-keys": order.authorized_keys,
    });
    let ethernets: serde_json::Map<String, serde_json::Value> = order
        .nics
        .iter()
        .map(|nic| {
            let mac = nic.mac.to_lowercase();
            (nic.name.clone(), json!({"match": {"macaddress": mac}, "dhcp4": true}))
        })
        .collect();
    let network = json!({"version": 2, "ethernets": ethernets});
    let user_data = if order.user_data.is_empty() { "#cloud-config\n{}\n" } else { &order.user_data };
    let mut texts = BTreeMap::from([
        ("meta-data".to_owned(), format!("{meta:#}\n")),
        ("network-config".to_owned(), format!("{network:#}\n")),
        ("user-data".to_owned(), user_data.to_owned()),
    ]);
    if let Some(ssh) = &order.ssh {
        texts.insert("vendor-data".to_owned(), login(instance_id, ssh, secrets));
    }
    texts
}

/// A script that gives the guest's sshd its key, with what is said of it, and tells it whom to let in.
fn login(instance_id: &str, ssh: &InstanceSsh, secrets: &[OrderSecret]) -> String {
    let known = secrets.iter().find(|secret| secret.marker == ssh.host_key);
    let key = known.map_or(&ssh.host_key, |secret| &secret.value);
    let mut script = BEGIN.to_owned();
    let host = [
        ("rhyzome_host_key", 600, key.as_str()),
        ("rhyzome_host_key-cert.pub", 644, &ssh.host_certificate),
        ("sshd_config.d/10-rhyzome-host.conf", 644, HOST),
    ];
    let users = [
        ("rhyzome_user_ca.pub", 644, ssh.user_authority.as_str()),
        ("rhyzome_principals", 644, instance_id),
        ("sshd_config.d/10-rhyzome.conf", 644, USERS),
    ];
    // What has a key that nobody else knows keeps it.
    for (path, mode, text) in host.into_iter().filter(|_| !key.is_empty()).chain(users) {
        script += &format!("put /etc/ssh/{path} {mode} <<'END'\n{}\nEND\n", text.trim());
    }
    script + END
}

const BEGIN: &str = "\
#cloud-boothook
#!/bin/sh
# What this instance is to SSH, and whom it lets in by a certificate. Written anew at each boot.
umask 077
mkdir -m 755 -p /etc/ssh/sshd_config.d
put() { cat >\"$1.new\" && chmod \"$2\" \"$1.new\" && mv -f \"$1.new\" \"$1\"; }
";
const HOST: &str = "\
# Written by Rhyzome at each boot. A file that sorts before this one counts before it.
HostKey /etc/ssh/rhyzome_host_key
HostCertificate /etc/ssh/rhyzome_host_key-cert.pub";
/// The principals of a user's certificate are no names of users: whoever has the instance's id is let in.
const USERS: &str = "\
# Written by Rhyzome at each boot. A file that sorts before this one counts before it.
TrustedUserCAKeys /etc/ssh/rhyzome_user_ca.pub
AuthorizedPrincipalsFile /etc/ssh/rhyzome_principals";
/// Where sshd runs already it reads them now.
const END: &str = "\
if command -v systemctl >/dev/null; then
  systemctl --no-block try-reload-or-restart ssh.service sshd.service >/dev/null 2>&1 || :
fi
";

/// The seed as an ISO 9660 image.
pub fn iso(texts: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
    let files = texts
        .iter()
        .map(|(name, text)| File::File { name: Arc::new(name.clone()), contents: text.as_bytes().to_vec() })
        .collect();
    let options = IsoFormatOptions {
        volume_name: "cidata".into(),
        sector_size: 2048,
        path_separator: PathSeparator::ForwardSlash,
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        strict_charset: false,
        features: CreationFeatures {
            joliet: Some(JolietLevel::Level3),
            rock_ridge: Some(RripOptions::default()),
            ..CreationFeatures::default()
        },
    };
    let content: usize = texts.values().map(|text| text.len().next_multiple_of(2048)).sum();
    let mut image = Cursor::new(vec![0_u8; content + OVERHEAD_BYTES]);
    let input = InputFiles { path_separator: PathSeparator::ForwardSlash, files };
    IsoImageWriter::create(&mut image, input, options).map_err(|error| format!("seed image: {error}"))?;
    Ok(image.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhyzome_proto::v1::InstanceNic;

    #[test]
    fn the_seed_says_who_the_guest_is() {
        let order = InstanceOrder {
            hostname: "web-1".into(),
            authorized_keys: vec!["ssh-ed25519 AAAA me".into()],
            nics: vec![InstanceNic {
                name: "lan".into(),
                mac: "52:54:00:AA:00:01".into(),
                ..InstanceNic::default()
            }],
            user_data: "#!/bin/sh\necho hello\n".into(),
            ..InstanceOrder::default()
        };
        let texts = texts("inst_1", &order, &[]);
        assert!(!texts.contains_key("vendor-data"), "nobody speaks for it");
        let meta: serde_json::Value = serde_json::from_str(&texts["meta-data"]).unwrap();
        assert_eq!(meta["instance-id"], "inst_1");
        assert_eq!(meta["local-hostname"], "web-1");
        assert_eq!(meta["public-keys"][0], "ssh-ed25519 AAAA me");
        let network: serde_json::Value = serde_json::from_str(&texts["network-config"]).unwrap();
        assert_eq!(network["ethernets"]["lan"]["match"]["macaddress"], "52:54:00:aa:00:01");
        assert_eq!(texts["user-data"], order.user_data);
        let image = iso(&texts).unwrap();
        // The primary volume descriptor: sector 16, label at byte 40.
        assert_eq!(&image[0x8001..0x8006], b"CD001");
        assert_eq!(&image[0x8028..0x802e], b"cidata");
        assert!(image.windows(10).any(|window| window == b"echo hello"));
    }

    #[test]
    fn the_seed_says_what_the_guest_is_to_ssh() {
        let ssh = InstanceSsh {
            host_key: "sealed:sec_1".into(),
            host_certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
            user_authority: "ssh-ed25519 AAAC rhyzome acme".into(),
        };
        let order = InstanceOrder { ssh: Some(ssh), ..InstanceOrder::default() };
        let secret = OrderSecret { marker: "sealed:sec_1".into(), value: "-----BEGIN\nabc\n".into() };
        let script = texts("inst_1", &order, &[secret])["vendor-data"].clone();
        assert!(script.starts_with("#cloud-boothook\n#!/bin/sh\n"), "{script}");
        assert!(
            script.contains("put /etc/ssh/rhyzome_host_key 600 <<'END'\n-----BEGIN\nabc\nEND\n"),
            "{script}"
        );
        assert!(script.contains("rhyzome_principals 644 <<'END'\ninst_1\nEND\n"), "{script}");
        // One whose key is nowhere but in it keeps it, and lets in whom it let in.
        let adopted = InstanceSsh { host_key: String::new(), ..order.ssh.clone().unwrap() };
        let adopted = InstanceOrder { ssh: Some(adopted), ..order.clone() };
        let script = texts("inst_1", &adopted, &[])["vendor-data"].clone();
        assert!(!script.contains("host_key") && script.contains("TrustedUserCAKeys"), "{script}");
        // What is shown to people has no secrets.
        let shown = texts("inst_1", &order, &[])["vendor-data"].clone();
        assert!(shown.contains("sealed:sec_1") && !shown.contains("abc"), "{shown}");
    }

    #[test]
    fn large_user_data_fits() {
        let order = InstanceOrder { user_data: "x".repeat(300_000), ..InstanceOrder::default() };
        assert!(iso(&texts("inst_1", &order, &[])).unwrap().len() > 300_000);
    }
}
