//! A world for one story: a folder that the user `rhyzome` can reach, a server, a node, the tiny image; and proof at
//! the end that nothing is left.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::http::{self, Reply};
use xtask::leftovers::{self, Snapshot};
use xtask::procfs::{self, Seen};
use xtask::world::{Options, World};

/// Guests share two processors: only the stories in `long`, which mostly wait, run side by side.
static MACHINE: RwLock<()> = RwLock::new(());

/// How long anything may take that a guest's boot is part of.
pub const BOOT: u64 = 90;

/// The machine, held by one story, or by several that share it.
#[allow(dead_code, reason = "held")]
pub enum Turn {
    /// By one.
    Alone(RwLockWriteGuard<'static, ()>),
    /// By several.
    Shared(RwLockReadGuard<'static, ()>),
}

/// The whole machine. A story that failed does not keep the others from it.
pub fn alone() -> Turn {
    Turn::Alone(MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The machine, shared with other stories that share it.
pub fn shared() -> Turn {
    Turn::Shared(MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// A world and what is needed to tell its stories.
pub struct House {
    pub world: World,
    // Fields are dropped in this order: processes, files, then the machine is free.
    folder: TempDir,
    _turn: Turn,
}

impl House {
    /// The embedded default and one node, `node1`, alone on the machine.
    pub fn new() -> House {
        House::with(alone(), |_| {})
    }

    /// With other options.
    pub fn with(turn: Turn, change: impl FnOnce(&mut Options)) -> House {
        let folder = folder();
        let mut options = Options::in_folder(folder.path()).unwrap();
        change(&mut options);
        let world = World::start(options).unwrap();
        House { world, folder, _turn: turn }
    }

    /// Makes the tiny guest a global image.
    pub fn import_tiny(&self) {
        static TINY: LazyLock<PathBuf> = LazyLock::new(|| xtask::image::tiny(None, true).unwrap());
        self.import("tiny", &TINY);
    }

    /// Makes a file a global image, as an operator would.
    pub fn import(&self, name: &str, file: &Path) {
        let file = file.display().to_string();
        self.world.said(&["image", "import", name, &file, "--global"]).unwrap();
    }

    /// What there is on the machine of this world.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.folder.path()).unwrap()
    }

    /// The agent's folder.
    pub fn state(&self) -> PathBuf {
        self.world.state_of("node1")
    }

    // === REST ===

    /// One request of the operator.
    pub fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = (!body.is_null()).then_some(&body);
        Answer::of(self.world.call(method, path, body).unwrap())
    }

    /// One request with headers and a body just as they are.
    pub fn raw(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let token = format!("Authorization: Bearer {}", self.world.token().unwrap());
        let headers: Vec<String> = [token.as_str()].iter().chain(headers).map(|&it| it.to_owned()).collect();
        let wait = Duration::from_secs(60);
        Answer::of(http::request(self.world.http, method, path, &headers, body, wait).unwrap())
    }

    /// An object.
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, Value::Null).is(200).json
    }

    /// Makes an object and waits until its job is done; the object.
    pub fn make(&self, path: &str, body: Value) -> Value {
        let made = self.call("POST", path, body).one_of(&[201, 202]).json;
        self.done(&made);
        let id = made["id"].as_str().unwrap();
        self.get(&format!("{path}/{id}"))
    }

    /// Makes an instance of the tiny image, and waits until it runs.
    pub fn make_instance(&self, tenant: &str, name: &str, spec: Value) -> Value {
        let mut whole = json!({"image": "tiny"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.make(&format!("/v1/tenants/{tenant}/instances"), json!({"name": name, "spec": whole}))
    }

    /// Calls an action and waits for its job.
    pub fn act(&self, path: &str, verb: &str, body: Value) {
        let answer = self.call("POST", &format!("{path}/actions/{verb}"), body).is(202);
        self.done(&answer.json);
    }

    /// Deletes an object and waits until it is gone.
    pub fn delete(&self, path: &str) {
        let answer = self.call("DELETE", path, Value::Null).one_of(&[202, 204]);
        if answer.status == 202 {
            self.done(&answer.json);
        }
    }

    /// Waits until the job of an answer is done.
    pub fn done(&self, answer: &Value) {
        let Some(job) = answer["job"].as_str() else { return };
        let job = until(&format!("the end of {job}"), BOOT, || {
            let job = self.get(&format!("/v1/jobs/{job}"));
            let is_final = ["done", "failed", "cancelled"].contains(&job["state"].as_str().unwrap());
            is_final.then_some(job)
        });
        assert_eq!(job["state"], "done", "{job:#}");
    }

    /// Waits until the object is as wanted; the object.
    pub fn wait_for(&self, path: &str, what: &str, seconds: u64, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            last = self.get(path);
            if wanted(&last) {
                return last;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{path} did not come to {what} within {seconds} s: {last:#}");
    }

    // === the node ===

    /// QEMU processes of an instance (all of this world if `id` is empty).
    pub fn qemus(&self, id: &str) -> Vec<Seen> {
        let mut seen = procfs::of(self.folder.path());
        seen.retain(|it| it.argv[0].contains("qemu-system") && it.line().contains(id));
        seen
    }

    /// The one QEMU of an instance.
    pub fn qemu(&self, id: &str) -> Process {
        let seen = self.qemus(id);
        assert_eq!(seen.len(), 1, "{seen:#?}");
        Process::of(seen[0].pid)
    }

    /// What the guest printed.
    pub fn console(&self, id: &str) -> String {
        let file = self.state().join("instances").join(id).join("console.log");
        std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until the guest printed this, so many times.
    pub fn console_says(&self, id: &str, text: &str, times: usize, seconds: u64) -> String {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let console = self.console(id);
            if console.matches(text).count() >= times {
                return console;
            }
            assert!(Instant::now() < end, "no {text:?} within {seconds} s in:\n{console}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A page of a guest, fetched inside its network's namespace.
    pub fn page(&self, instance: &Value) -> Result<Page, String> {
        let nic = nic(instance);
        let (network, address) = (nic["network"].as_str().unwrap(), nic["address"].as_str().unwrap());
        let page = self.world.guest_page(network, address, 80, "/cgi-bin/page");
        page.map(Page).map_err(|error| format!("{error:#}"))
    }

    /// The page, as soon as the guest serves one that is as wanted.
    pub fn await_page(&self, instance: &Value, wanted: impl Fn(&Page) -> bool) -> Page {
        let id = instance["id"].as_str().unwrap();
        let mut last = Err(String::new());
        let end = Instant::now() + Duration::from_secs(BOOT);
        while Instant::now() < end {
            last = self.page(instance);
            match last {
                Ok(page) if wanted(&page) => return page,
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        panic!("no such page of {id}: {:?}; its console:\n{}", last.map(|it| it.0), self.console(id));
    }

    /// Deletes the tiny image, and proves that nothing is there that was not before it was imported. A server or
    /// agent that was started again is another process, and no leftover.
    #[track_caller]
    pub fn nothing_left(&self, before: &Snapshot) {
        self.delete("/v1/images/tiny");
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut left = leftovers::compare(before, &self.snapshot());
            let again =
                |fact: &str| fact.contains("/rhyzome-api --config") || fact.contains("/rhyzome-agent run ");
            left.retain(|fact| fact.starts_with("left behind") && !again(fact));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{}", left.join("\n"));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A new folder that others may pass through.
pub fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::Builder::new().prefix("rhyzome-test-").tempdir_in("/var/lib").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The user as whom the server runs may read this file, and nobody else.
pub fn own(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    xtask::world::prepare(&xtask::world::binaries().unwrap()).unwrap();
    let user = nix::unistd::User::from_name("rhyzome").unwrap().unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    nix::unistd::chown(file, Some(user.uid), Some(user.gid)).unwrap();
}

/// The only network interface of an instance.
pub fn nic(instance: &Value) -> &Value {
    let nics = instance["status"]["nics"].as_object().unwrap_or_else(|| panic!("no nics: {instance:#}"));
    assert_eq!(nics.len(), 1, "{instance:#}");
    nics.values().next().unwrap()
}

/// Of whatever a story does by chance; `TEST_SEED` gives another.
pub fn seed() -> u64 {
    std::env::var("TEST_SEED").map_or(1, |text| text.parse().unwrap())
}

/// Where an object is.
pub fn path_of(object: &Value) -> String {
    let (tenant, kind) = (object["tenant"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap());
    let id = object["id"].as_str().unwrap();
    if tenant.is_empty() { format!("/v1/{kind}s/{id}") } else { format!("/v1/tenants/{tenant}/{kind}s/{id}") }
}

/// Asks until the answer is `Some`, for at most so many seconds.
#[track_caller]
pub fn until<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {seconds} s in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a guest tells of itself on its page: `word value` in lines.
#[derive(Debug)]
pub struct Page(pub String);

impl Page {
    /// The value of a word.
    pub fn word(&self, word: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no `{word}` on the page:\n{}", self.0)).trim()
    }

    /// Seconds since the guest's kernel started.
    pub fn uptime(&self) -> f64 {
        self.word("uptime").parse().unwrap()
    }
}

/// A guest's first script: it counts its runs, and from then on every boot serves a page.
pub const SCRIPT: &str = r##"#!/bin/sh
runs=$(cat /root/runs 2>/dev/null || echo 0)
echo $((runs + 1)) >/root/runs
mkdir -p /srv/www/cgi-bin
cat >/srv/www/cgi-bin/page <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
echo "host $(hostname)"
echo "boots $(cat /var/lib/rhyzome/boots)"
echo "runs $(cat /root/runs)"
echo "uptime $(cut -d' ' -f1 /proc/uptime)"
echo "address $(ip -4 -o address show scope global | sed -n 's/.* inet \([^ ]*\).*/\1/p')"
END
chmod +x /srv/www/cgi-bin/page
cat >/var/lib/cloud/scripts/per-boot/page <<'END'
#!/bin/sh
httpd -h /srv/www -p 80
END
chmod +x /var/lib/cloud/scripts/per-boot/page
/var/lib/cloud/scripts/per-boot/page
sync
"##;

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub json: Value,
}

impl Answer {
    pub fn of(reply: Reply) -> Answer {
        let json = serde_json::from_str(&reply.body).unwrap_or_else(|_| json!(reply.body));
        Answer { status: reply.status, json }
    }

    /// Itself, if it has this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Answer {
        self.one_of(&[status])
    }

    /// Itself, if it has one of these.
    #[track_caller]
    pub fn one_of(self, wanted: &[u16]) -> Answer {
        assert!(wanted.contains(&self.status), "{}, not {wanted:?}: {:#}", self.status, self.json);
        self
    }

    /// Itself, if it is this problem.
    #[track_caller]
    pub fn problem(self, status: u16, word: &str) -> Answer {
        let answer = self.is(status);
        assert_eq!(answer.json["type"], format!("/problems/{word}"), "{:#}", answer.json);
        answer
    }

    /// The fields that a problem complains of, sorted.
    pub fn fields(&self) -> Vec<&str> {
        let errors = self.json["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut fields: Vec<&str> = errors.iter().filter_map(|error| error["field"].as_str()).collect();
        fields.sort_unstable();
        fields
    }
}

/// A process that is not mistaken for a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub started: String,
}

impl Process {
    /// The one of this number.
    pub fn of(pid: i32) -> Process {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after = stat.rsplit_once(") ").unwrap().1;
        Process { pid, started: after.split(' ').nth(19).unwrap().to_owned() }
    }

    /// Ends it at once.
    pub fn kill9(&self) {
        procfs::signal(self.pid, nix::sys::signal::Signal::SIGKILL);
    }

    /// A line of /proc/PID/status.
    pub fn status(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
