//! A real slapd on loopback, with its configuration, its data and its log in a folder of the test: nothing of the
//! machine's own, but for the program and its schemata.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use xtask::run;
use xtask::world::{Process, Style};

use crate::house::{self, until};

/// Who may look at everybody.
pub const READER: (&str, &str) = ("cn=reader,dc=example,dc=com", "reader-of-a-test");
/// Below this are people.
pub const PEOPLE: &str = "ou=people,dc=example,dc=com";
/// And groups.
pub const GROUPS: &str = "ou=groups,dc=example,dc=com";

/// The folder and the process.
pub struct Slapd {
    folder: TempDir,
    process: Process,
    /// Without TLS, or with StartTLS.
    pub plain: SocketAddr,
    /// With TLS from the start.
    pub encrypted: SocketAddr,
}

impl Slapd {
    /// Starts it with its people, and waits until it answers. `elsewhere`: where its referral leads.
    pub fn start(elsewhere: SocketAddr) -> Slapd {
        xtask::packages::ensure(&[xtask::packages::LDAP], false).unwrap();
        let folder = house::folder();
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (plain, encrypted) = (one.local_addr().unwrap(), other.local_addr().unwrap());
        drop((one, other));
        certificates(folder.path());
        fs::write(folder.path().join("wrong-password"), "not-this").unwrap();
        fs::write(folder.path().join("password"), READER.1).unwrap();
        for secret in ["password", "wrong-password"] {
            house::own(&folder.path().join(secret));
        }
        fs::create_dir(folder.path().join("db")).unwrap();
        fs::write(folder.path().join("slapd.conf"), configuration(folder.path())).unwrap();
        fs::write(folder.path().join("data.ldif"), DATA.replace("ELSEWHERE", &elsewhere.to_string()))
            .unwrap();
        let text = |name: &str| folder.path().join(name).display().to_string();
        let mut add = std::process::Command::new("/usr/sbin/slapadd");
        run::output(add.args(["-f", &text("slapd.conf"), "-l", &text("data.ldif")])).unwrap();
        let urls = format!("ldap://{plain}/ ldaps://{encrypted}/");
        // It makes a table of as many descriptors as it may have.
        let words = [
            "prlimit",
            "--nofile=1024",
            "/usr/sbin/slapd",
            "-d",
            "0",
            "-h",
            &urls,
            "-f",
            &text("slapd.conf"),
        ];
        let words = words.map(str::to_owned).to_vec();
        let process = Process::new("slapd", folder.path(), words, Style::default());
        let mut slapd = Slapd { folder, process, plain, encrypted };
        slapd.again();
        slapd
    }

    /// Starts it where it was.
    pub fn again(&mut self) {
        self.process.start().unwrap();
        let (plain, process) = (self.plain, &mut self.process);
        until("slapd to answer", 60, || {
            assert!(process.is_running(), "slapd ended{}", process.last_words());
            TcpStream::connect(plain).ok()
        });
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process.terminate(Duration::from_secs(30)).unwrap();
    }

    /// A file of the folder: `ca.pem`, `wrong-ca.pem`, `password`, `wrong-password`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        // Whoever panicked has left it running.
        if self.process.is_running() {
            let _ = self.process.kill9();
        }
    }
}

/// An authority, its certificate for 127.0.0.1, and an authority that has nothing to do with it.
fn certificates(folder: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    };
    let (pem, issuer) = authority("Of the directory");
    fs::write(folder.join("ca.pem"), pem).unwrap();
    fs::write(folder.join("wrong-ca.pem"), authority("Of somebody else").0).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("cert.pem"), leaf.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.run
argsfile {folder}/slapd.args
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
database mdb
suffix dc=example,dc=com
directory {folder}/db
maxsize 16777216
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=\"{}\" read by self read by * none
",
        READER.0
    )
}

/// Carla has a name that means something in a filter. There are two who are called twin. What is below `ou=elsewhere`
/// is said to be at another directory.
const DATA: &str = "dn: dc=example,dc=com
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: cn=reader,dc=example,dc=com
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: reader-of-a-test

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit
ou: groups

dn: uid=anna,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: anna
cn: Anna
sn: A
userPassword: anna-of-a-test

dn: uid=bert,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: bert
cn: Bert
sn: B
userPassword: bert-of-a-test

dn: cn=Carla (C*),ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: c(*)
cn: Carla (C*)
sn: C
userPassword: carla-of-a-test

dn: cn=nopassword,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: dora
cn: nopassword
sn: D

dn: cn=twin one,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: twin
cn: twin one
sn: T
userPassword: twin-of-a-test

dn: cn=twin two,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: twin
cn: twin two
sn: T
userPassword: twin-of-a-test

dn: ou=elsewhere,ou=people,dc=example,dc=com
objectClass: referral
objectClass: extensibleObject
ou: elsewhere
ref: ldap://ELSEWHERE/ou=people,dc=example,dc=com

dn: cn=night-shift,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: night-shift
member: uid=anna,ou=people,dc=example,dc=com
member: cn=Carla (C*),ou=people,dc=example,dc=com

dn: cn=cloud-admins,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: cloud-admins
member: uid=bert,ou=people,dc=example,dc=com
";
