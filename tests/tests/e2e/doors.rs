//! A server that other machines can reach shows a certificate: of its own authority, or from files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::house::{folder, own, until};

const ADDRESS: &str = "192.0.2.7";
const URL: &str = "https://192.0.2.7:8440";

/// A server on an address that is not loopback, in a network namespace of its own: nobody else reaches it.
struct Remote {
    server: Child,
    // After the server, which works in it.
    folder: TempDir,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen then.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Remote {
    fn start(folder: TempDir, http: Value) -> Remote {
        Remote::letting_in(folder, http, json!([]))
    }

    fn letting_in(folder: TempDir, http: Value, authenticators: Value) -> Remote {
        let binaries = xtask::world::binaries().unwrap();
        xtask::world::prepare(&binaries).unwrap();
        let mut config = json!({
            "data": folder.path().join("server"), "grpc": {"listen": "127.0.0.1:8441"}, "http": http,
            "auth": {"authenticators": authenticators},
        });
        config["http"]["listen"] = json!(format!("{ADDRESS}:8440"));
        let file = folder.path().join("rhyzome-api.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let script = "ip link set lo up && ip address add \"$0/32\" dev lo && exec \"$1\" --config \"$2\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, ADDRESS]).arg(binaries.join("rhyzome-api")).arg(file);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let server = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let mut remote = Remote { server, folder };
        until("the server to answer", 60, || {
            let log = std::fs::read_to_string(remote.folder.path().join("log")).unwrap();
            assert!(remote.server.try_wait().unwrap().is_none(), "the server ended: {log}");
            (remote.curl(&["--insecure", &format!("{URL}/healthz")]).0 == "200").then_some(())
        });
        remote
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    /// Runs a program beside the server.
    fn beside(&self, program: &Path, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.server.id())).arg(program).args(words);
        for other in ["RHYZOME_URL", "RHYZOME_TOKEN", "RHYZOME_CA", "RHYZOME_TENANT", "RHYZOME_PROFILE"] {
            command.env_remove(other);
        }
        command.env("RHYZOME_HOME", self.home()).output().unwrap()
    }

    /// What curl gets: the status (`000` without one), and curl's own exit code.
    fn curl(&self, words: &[&str]) -> (String, i32) {
        let mut all =
            vec!["--silent", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}"];
        all.extend(words);
        let output = self.beside(Path::new("curl"), &all);
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    /// Whoever believes this file is served, and asked for a token; whoever does not, or speaks plainly, gets nothing.
    fn is_closed_but_to_those_who_trust(&self, ca: &Path) {
        let (ca, nodes) = (ca.to_str().unwrap(), format!("{URL}/v1/nodes"));
        assert_eq!(self.curl(&["--cacert", ca, &format!("{URL}/healthz")]), ("200".into(), 0));
        assert_eq!(self.curl(&["--cacert", ca, &nodes]), ("401".into(), 0));
        let token = std::fs::read_to_string(self.home().join("operator.token")).unwrap();
        let header = format!("Authorization: Bearer {}", token.trim());
        assert_eq!(self.curl(&["--cacert", ca, "--header", &header, &nodes]), ("200".into(), 0));
        // 60: the certificate is not to be believed.
        assert_eq!(self.curl(&[&nodes]), ("000".into(), 60));
        let plain = nodes.replace("https:", "http:");
        let (status, code) = self.curl(&["--header", &header, &plain]);
        assert!(status == "000" && code != 0, "plain HTTP is answered with {status}");
    }
}

#[test]
fn its_own_authority_vouches_for_a_server_that_others_reach() {
    let remote = Remote::start(folder(), json!({}));
    remote.is_closed_but_to_those_who_trust(&remote.home().join("ca.pem"));
    // The command line finds address, token and authority by itself.
    let binary = xtask::world::binaries().unwrap().join("rhyzome");
    let said = remote.beside(&binary, &["whoami"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn a_certificate_from_files_is_shown() {
    let folder = folder();
    let made = rcgen::generate_simple_self_signed([ADDRESS.to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    own(&key);
    let remote = Remote::start(folder, json!({"cert": cert, "key": key}));
    remote.is_closed_but_to_those_who_trust(&cert);
    let ca = remote.home().join("ca.pem");
    let (status, code) = remote.curl(&["--cacert", ca.to_str().unwrap(), &format!("{URL}/healthz")]);
    assert_eq!((status.as_str(), code), ("000", 60), "the cluster's authority did not sign this one");
    // The command line believes what it is told to.
    let binary = xtask::world::binaries().unwrap().join("rhyzome");
    let said = remote.beside(&binary, &["whoami", "--ca", cert.to_str().unwrap()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(client_json(&remote)["ca_file"], Value::Null);
}

#[test]
fn whoever_has_a_certificate_is_asked_for_it() {
    let folder = folder();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "People");
    let key = KeyPair::generate().unwrap();
    let (pem, issuer) = (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key));
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let ca = file("people.pem", &pem);
    let card = |name: &str, usage: ExtendedKeyUsagePurpose| {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![usage];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        (file(&format!("{name}.pem"), &leaf.pem()), file(&format!("{name}.key"), &key.serialize_pem()))
    };
    let anna = card("anna", ExtendedKeyUsagePurpose::ClientAuth);
    let web = card("web", ExtendedKeyUsagePurpose::ServerAuth);
    let entry = json!({"type": "certificate", "ca": ca, "name_from": "common-name", "operators": {"names": ["anna"]}});
    let remote = Remote::letting_in(folder, json!({}), json!([entry]));
    let ours = remote.home().join("ca.pem").display().to_string();
    let nodes = format!("{URL}/v1/nodes");
    let shown = |(cert, key): &(String, String)| {
        remote.curl(&["--cacert", &ours, "--cert", cert, "--key", key, &nodes]).0
    };
    assert_eq!((shown(&anna).as_str(), shown(&web).as_str()), ("200", "401"));
    remote.is_closed_but_to_those_who_trust(&remote.home().join("ca.pem"));
}

fn client_json(remote: &Remote) -> Value {
    serde_json::from_slice(&std::fs::read(remote.home().join("client.json")).unwrap()).unwrap()
}
