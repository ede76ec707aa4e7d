//! SSH by certificates with OpenSSH on both ends. The sshd is configured by exactly what the instance's seed holds: its
//! script is run as cloud-init runs it, with an `/etc/ssh` of its own, and sshd listens in the instance's network at the
//! instance's address. `rhyzome ssh` comes to it by the API, the server, the agent and the network's namespace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rhyzome_api::kernel::Timestamp;
use rhyzome_api::kernel::ssh::{Authority, Wanted, parse_public, private_key};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::house::{self, House, nic, path_of, until};

/// An sshd at the address of an instance, as the instance's seed makes it.
struct Sshd {
    process: Child,
    folder: TempDir,
    namespace: String,
    address: String,
}

impl Sshd {
    fn start(house: &House, instance: &Value) -> Sshd {
        let folder = house::folder();
        let seed = house.state().join("instances").join(instance["id"].as_str().unwrap()).join("seed.iso");
        let script = folder.path().join("vendor-data");
        run(Command::new("xorriso")
            .args(["-osirrox", "on", "-indev"])
            .arg(&seed)
            .args(["-extract", "/vendor-data"])
            .arg(&script));
        let text = fs::read_to_string(&script).unwrap();
        fs::write(&script, text.strip_prefix("#cloud-boothook\n").unwrap()).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();

        let nic = nic(instance);
        let (network, address) = (nic["network"].as_str().unwrap(), nic["address"].as_str().unwrap());
        let namespace = format!("rz-{}", &network[network.len() - 10..]);
        // Now what is sent to the instance from here stays here.
        run(Command::new("ip").args(["-n", &namespace, "address", "add", address, "dev", "lo"]));
        let shell = format!(
            "set -e; mount -t tmpfs -o mode=755 none /etc/ssh; {script}; mkdir -p /run/sshd\n\
             printf 'Include /etc/ssh/sshd_config.d/*.conf\\nListenAddress {address}\\nUsePAM no\\nPidFile none\\n\
             PasswordAuthentication no\\nKbdInteractiveAuthentication no\\n' >/etc/ssh/sshd_config\n\
             stat -c '%a %n' /etc/ssh/rhyzome* >{modes}\nexec /usr/sbin/sshd -D -e",
            script = script.display(),
            modes = folder.path().join("modes").display(),
        );
        let said = fs::File::create(folder.path().join("said")).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &namespace, "unshare", "--mount", "sh", "-c", &shell])
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let sshd = Sshd { process, folder, namespace, address: address.to_owned() };
        until("sshd to listen", 20, || sshd.said().contains("Server listening").then_some(()));
        sshd
    }

    /// What it has said.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }

    /// OpenSSH itself, beside it, with these files; what it is called to ssh.
    fn asked(&self, files: &Files, alias: &str) -> Output {
        let options = [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".into(),
            "IdentitiesOnly=yes".into(),
            "IdentityAgent=none".into(),
            "GlobalKnownHostsFile=none".into(),
            format!("UserKnownHostsFile={}", files.path("known_hosts").display()),
            format!("IdentityFile={}", files.path("key").display()),
            format!("CertificateFile={}", files.path("key-cert.pub").display()),
            format!("HostKeyAlias={alias}"),
        ];
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "ssh", "-F", "none", "-l", "root"]);
        for option in options {
            command.args(["-o", &option]);
        }
        command.args([&self.address, "echo", "in"]).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a client shows and believes.
struct Files(TempDir);

impl Files {
    fn new(certificate: &str, known_hosts: &str, private: &str) -> Files {
        let files = Files(house::folder());
        for (name, text) in [("key", private), ("key-cert.pub", certificate), ("known_hosts", known_hosts)] {
            fs::write(files.path(name), format!("{}\n", text.trim_end())).unwrap();
            fs::set_permissions(files.path(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn public_of(private: &str) -> String {
    rhyzome_api::kernel::ssh::public_key(private).unwrap()
}

/// A certificate for this key, as the operator is given it.
fn certified(house: &House, instance: &Value, key: &str, seconds: u32) -> Value {
    let body = json!({ "public_key": public_of(key), "valid_seconds": seconds });
    house.call("POST", &format!("{}/ssh-certificate", path_of(instance)), body).is(201).json
}

#[test]
fn who_may_gets_in_and_nobody_else_and_nobody_is_asked() {
    let house = House::new();
    let before = house.snapshot();
    house.import_tiny();
    house.call("POST", "/v1/tenants", json!({ "name": "beta" })).is(201);
    let web = house.make_instance("default", "web", json!({}));
    let other = house.make_instance("default", "other", json!({}));
    let theirs = house.make_instance("beta", "web", json!({}));
    let sshd = Sshd::start(&house, &web);

    let modes = fs::read_to_string(sshd.folder.path().join("modes")).unwrap();
    assert!(modes.contains("600 /etc/ssh/rhyzome_host_key\n"), "{modes}");
    logs_in(&house, &sshd);
    others_are_refused(&house, &sshd, [&web, &other, &theirs]);
    drop(sshd);
    // Nobody listens there any more, and that is said.
    let refused = house.world.cli(&["ssh", "web", "-l", "root", "--", "true"]).unwrap();
    assert!(!refused.status.success() && told(&refused).contains("does not answer"), "{}", told(&refused));
    for guest in [&web, &other, &theirs] {
        house.act(&path_of(guest), "stop", json!({ "mode": "hard" }));
        house.delete(&path_of(guest));
    }
    house.nothing_left(&before);
}

/// By `rhyzome ssh`, without a question, with what the command has said and how it ended.
fn logs_in(house: &House, sshd: &Sshd) {
    let left = || fs::read_dir("/tmp").unwrap().flatten().filter(is_ours).count();
    fn is_ours(entry: &fs::DirEntry) -> bool {
        entry.file_name().to_string_lossy().starts_with("rhyzome-ssh-")
    }
    let there = left();
    let echo = house.world.cli(&["ssh", "web", "-l", "root", "--", "echo", "in;", "exit", "7"]).unwrap();
    assert_eq!(
        (echo.status.code(), String::from_utf8_lossy(&echo.stdout).as_ref()),
        (Some(7), "in\n"),
        "{}\n{}",
        told(&echo),
        sshd.said()
    );
    assert!(!told(&echo).contains("authenticity"), "{}", told(&echo));
    // Much of it, both ways.
    let mut cat = house.world.command(&["ssh", "web", "-l", "root", "--", "cat"]);
    let much = sshd.folder.path().join("much");
    let bytes: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&much, &bytes).unwrap();
    let output = cat.stdin(fs::File::open(&much).unwrap()).output().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{} bytes came back", output.stdout.len());
    // sshd's log says who it was, and by which request.
    assert!(sshd.said().contains("ID operator"), "{}", sshd.said());
    assert_eq!(left(), there, "files of a login are left");
    // Whoever may only look gets nothing to log in with.
    let spec = json!({ "scopes": ["*:get", "*:list"], "tenant": "default" });
    let token = house.call("POST", "/v1/tokens", json!({ "spec": spec })).is(201).json;
    let token = token["secrets"]["token"].as_str().unwrap();
    let refused = house.world.cli(&["--token", token, "ssh", "web", "-l", "root", "--", "true"]).unwrap();
    assert!(!refused.status.success() && told(&refused).contains("you may not ssh"), "{}", told(&refused));
    let refused = house.world.cli(&["--token", token, "instance", "tunnel", "web"]).unwrap();
    assert!(!refused.status.success() && told(&refused).contains("you may not ssh"), "{}", told(&refused));
}

/// A good certificate is let in, and each that is bad in one thing is not.
fn others_are_refused(house: &House, sshd: &Sshd, [web, other, theirs]: [&Value; 3]) {
    let key = private_key([1; 32]).unwrap();
    let key = key.reveal();
    let good = certified(house, web, key, 300);
    let (certificate, known) = (good["certificate"].as_str().unwrap(), good["known_hosts"].as_str().unwrap());
    let id = web["id"].as_str().unwrap();
    let short = certified(house, web, key, 30);
    let files = Files::new(certificate, known, key);
    let output = sshd.asked(&files, id);
    assert!(output.status.success() && told(&output).starts_with("in"), "{}\n{}", told(&output), sshd.said());
    // And by its names, for whoever believes the tenant's authority as a whole.
    let authorities = house.get("/v1/tenants/default/ssh-ca");
    let whole = Files::new(certificate, authorities["known_hosts"].as_str().unwrap(), key);
    for name in ["web", "web.default.internal", &sshd.address] {
        assert!(sshd.asked(&whole, name).status.success(), "{name}");
    }

    let refused = |why: &str, files: &Files, alias: &str, said: &str| {
        let output = sshd.asked(files, alias);
        assert!(
            !output.status.success() && told(&output).contains(said),
            "{why}: {}\n{}",
            told(&output),
            sshd.said()
        );
    };
    let shown = |certificate: &str| Files::new(certificate, known, key);
    let of_other = certified(house, other, key, 300);
    refused("another instance's", &shown(of_other["certificate"].as_str().unwrap()), id, "Permission denied");
    let of_theirs = certified(house, theirs, key, 300);
    refused("another tenant's", &shown(of_theirs["certificate"].as_str().unwrap()), id, "Permission denied");
    // With the right name in it, by somebody whom this instance does not believe.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = Timestamp(i64::try_from(now.as_micros()).unwrap());
    let wanted =
        Wanted { nonce: [3; 16], serial: 1, key_id: "mallory".into(), principals: vec![id.into()], now };
    let mallory = Authority::from_private(&private_key([66; 32]).unwrap()).unwrap();
    let forged = mallory.sign_user(&parse_public(&public_of(key)).unwrap(), &wanted, 300).unwrap();
    refused("a stranger's", &shown(&forged.line), id, "Permission denied");
    let stolen = Files::new(certificate, known, private_key([2; 32]).unwrap().reveal());
    refused("somebody else's key", &stolen, id, "Permission denied");
    refused("no certificate", &shown(&public_of(key)), id, "Permission denied");
    let host = web["status"]["ssh_host_certificate"].as_str().unwrap();
    refused("a host's", &shown(host), id, "Permission denied");
    // It is no other host, and a host that its tenant's authority does not know is none.
    let other_id = other["id"].as_str().unwrap();
    let as_other = Files::new(certificate, of_other["known_hosts"].as_str().unwrap(), key);
    refused("it passes for another", &as_other, other_id, "Host key verification failed");
    let stranger = format!("@cert-authority {id} {}", public_of(private_key([66; 32]).unwrap().reveal()));
    refused(
        "another authority",
        &Files::new(certificate, &stranger, key),
        id,
        "Host key verification failed",
    );

    let short = Files::new(short["certificate"].as_str().unwrap(), known, key);
    std::thread::sleep(Duration::from_secs(31));
    refused("one whose time is over", &short, id, "Permission denied");
    assert!(sshd.said().contains("Certificate invalid: expired"), "{}", sshd.said());
    assert!(sshd.asked(&files, id).status.success(), "the other one is good still");
    assert!(
        Path::new("/etc/ssh/rhyzome_host_key").symlink_metadata().is_err(),
        "this machine's own sshd is its own"
    );
}
