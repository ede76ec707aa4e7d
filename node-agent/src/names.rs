//! What things on the node are called: pure functions of object ids, the same after every restart.
//!
//! Kernel names are short (15 bytes for an interface, 107 for a unix socket), ids are long: where an id does
//! not fit, its end (the random part) or a digest of it stands for it.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The bridge inside each network's namespace.
pub const BRIDGE: &str = "br0";

/// The block node, and the job, by which QEMU fills the file of a snapshot: at most 31 bytes, and a letter first.
pub fn copy(snapshot_id: &str) -> String {
    format!("copy-{}", short_digest(snapshot_id))
}

/// What every namespace of ours is called at the front.
pub const NAMESPACE_PREFIX: &str = "rz-";

/// The namespace of a network.
pub fn namespace(network_id: &str) -> String {
    format!("{NAMESPACE_PREFIX}{}", tail(network_id))
}

/// The tap of one nic of an instance: at most 15 bytes, unique over all instances.
pub fn tap(instance_id: &str, nic: &str) -> String {
    format!("t{}", short_digest(&format!("{instance_id}/{nic}")))
}

/// What every WireGuard device of ours is called at the front.
pub const WIREGUARD_PREFIX: &str = "rzwg";

/// The WireGuard device of a server: at most 15 bytes.
pub fn wireguard(server_id: &str) -> String {
    format!("{WIREGUARD_PREFIX}{}", short_digest(server_id))
}

/// What every device of a mesh is called at the front.
pub const MESH_PREFIX: &str = "rzmesh";

/// The device of a mesh's member: at most 15 bytes.
pub fn mesh(member_id: &str) -> String {
    format!("{MESH_PREFIX}{}", &short_digest(member_id)[..8])
}

/// The keys of one member of a mesh.
pub fn mesh_folder(state: &Path, member_id: &str) -> PathBuf {
    state.join("mesh").join(member_id)
}

/// Where a WireGuard device in a process of its own is spoken to.
pub fn wireguard_socket(state: &Path, server_id: &str) -> PathBuf {
    run_root(state).join(format!("{}.sock", wireguard(server_id)))
}

/// Everything written for one WireGuard device, but its socket.
pub fn wireguard_folder(state: &Path, server_id: &str) -> PathBuf {
    state.join("wireguard").join(server_id)
}

/// Everything written for one instance, but its sockets.
pub fn instance_folder(state: &Path, instance_id: &str) -> PathBuf {
    state.join("instances").join(instance_id)
}

/// Sockets of one instance. Short, because a unix socket's path must stay under 108 bytes.
pub fn run_folder(state: &Path, instance_id: &str) -> PathBuf {
    run_root(state).join(short_digest(instance_id))
}

/// Where sockets live.
pub fn run_root(state: &Path) -> PathBuf {
    state.join("run")
}

/// Everything written for one network.
pub fn network_folder(state: &Path, network_id: &str) -> PathBuf {
    state.join("networks").join(network_id)
}

/// A disk in the agent's own pool.
pub fn disk_file(state: &Path, disk_id: &str) -> PathBuf {
    state.join("disks").join(format!("{disk_id}.qcow2"))
}

/// The bytes of an image: named by their digest, so that two images with the same bytes are one file.
pub fn image_file(state: &Path, sha256: &str) -> PathBuf {
    state.join("images").join(sha256)
}

/// Ten hex digits of SHA-256: enough where names must be short, and never read back.
pub fn short_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// True if `id` can be a file name of its own: ids come from the server, paths must not.
pub fn is_safe_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 80
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn tail(id: &str) -> &str {
    let start = id.char_indices().rev().nth(9).map_or(0, |(at, _)| at);
    &id[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_where_the_kernel_wants_them() {
        let id = "inst_019a8c5e7b3a7f10a2b3c4d5e6f70819";
        assert_eq!(namespace("net_019a8c5e7b3a7f10a2b3c4d5e6f70819"), "rz-d5e6f70819");
        assert_eq!(namespace("short"), "rz-short");
        let tap_name = tap(id, "lan");
        assert_eq!(tap_name.len(), 11);
        assert_ne!(tap_name, tap(id, "wan"));
        let socket = run_folder(Path::new("/var/lib/rhyzome-agent"), id).join("console.sock");
        assert!(socket.as_os_str().len() < 108);
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        assert!(is_safe_id("inst_019a8c5e-7b3a"));
        for id in ["", "..", "../etc", "a/b", ".hidden", "a\0b", "ä"] {
            assert!(!is_safe_id(id), "{id:?}");
        }
    }
}
