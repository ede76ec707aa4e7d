//! The NoCloud seed: what a guest learns about itself at boot, as a small read-only disk labelled `cidata`.
//!
//! All three files are JSON where cloud-init wants YAML: JSON is YAML, and needs no quoting rules of its own.

use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use rhyzome_proto::v1::InstanceOrder;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

/// Room for the ISO's own structures beside the files.
const OVERHEAD_BYTES: usize = 128 * 1024;

/// The seed's files by name.
pub fn texts(instance_id: &str, order: &InstanceOrder) -> BTreeMap<String, String> {
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
    BTreeMap::from([
        ("meta-data".to_owned(), format!("{meta:#}\n")),
        ("network-config".to_owned(), format!("{network:#}\n")),
        ("user-data".to_owned(), user_data.to_owned()),
    ])
}

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
        let texts = texts("inst_1", &order);
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
    fn large_user_data_fits() {
        let order = InstanceOrder { user_data: "x".repeat(300_000), ..InstanceOrder::default() };
        assert!(iso(&texts("inst_1", &order)).unwrap().len() > 300_000);
    }
}
