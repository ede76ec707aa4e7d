//! What an operator does on the machine itself, straight on the database: for the first day and for bad days.
//!
//! Writes go through the same store as those of the REST API, with the same checks, history and events; a server
//! that runs beside finds them, and runs the jobs that they make.

mod backup;
mod format;
mod restore;
mod schema;
mod users;
mod verbs;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use nix::unistd::{self, Uid, getuid};

pub use backup::{Kept, backup};
pub use restore::{Restored, restore};
pub use schema::raise_epoch;
pub(crate) use verbs::columns;

use crate::app;
use crate::config::{Config, Sealing};
use crate::environment::system_env;
use crate::kernel::{Caller, Error};
use crate::resources;
use crate::store::{Asked, DbUrl, Store};

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Bring the database's schema to this program's version; again is nothing
    Migrate,
    /// The database as a whole
    #[command(subcommand)]
    Db(Db),
    /// Tenants, straight on the database
    #[command(subcommand)]
    Tenant(Tenant),
    /// Nodes, straight on the database
    #[command(subcommand)]
    Node(Node),
    /// The operator's token
    #[command(subcommand)]
    Token(Token),
    /// Users, straight on the database
    #[command(subcommand)]
    User(User),
    /// The cluster's authority: who signs, who is trusted, and exchanging it for another
    #[command(subcommand)]
    Pki(Pki),
    /// What a tenant uses and may use, straight on the database
    #[command(subcommand)]
    Quota(Quota),
    /// Write the control plane's state, with its keys, into a new file; also while the server runs
    Backup {
        /// The file; it must not be there yet
        file: PathBuf,
    },
    /// Put what `backup` has written into an empty database, of either kind
    Restore {
        /// The file
        file: PathBuf,
    },
}

/// The database as a whole.
#[derive(Debug, Subcommand)]
pub enum Db {
    /// Empty the database, or make an empty one: for development
    Reset {
        /// Without it nothing is done, and what would be lost is told
        #[arg(long)]
        yes_destroy_everything: bool,
    },
    /// Say that this database counts although agents have obeyed a newer one: after a copy of its files was put back
    ///
    /// Agents then take its orders. Guests that it does not know are shown as orphans, and left alone.
    RaiseEpoch,
}

/// Verbs of tenants.
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// Make one
    Create {
        /// Its name
        name: String,
        /// What is said of it
        #[command(flatten)]
        set: TenantFields,
    },
    /// Change one
    Update {
        /// Its name or id
        name: String,
        /// What is said of it
        #[command(flatten)]
        set: TenantFields,
    },
    /// Take one away that owns nothing any more
    Delete {
        /// Its name or id
        name: String,
    },
    /// All of them
    List,
}

/// What can be said of a tenant.
#[derive(Debug, clap::Args)]
pub struct TenantFields {
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// Under which your books know it
    #[arg(long)]
    billing_reference: Option<String>,
    /// A tag, KEY=VALUE; `KEY=` takes it away. May be said several times
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// True refuses deletion
    #[arg(long)]
    protected: Option<bool>,
}

/// Verbs of nodes.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// All of them
    List,
    /// Print the line with which a machine joins as this node; makes the node if there is none
    Invite {
        /// Its name
        name: String,
    },
    /// Accept nothing of a node any more, until it is invited and joins again
    Revoke {
        /// Its name or id
        name: String,
    },
    /// Keep new instances away from a node
    Cordon {
        /// Its name or id
        name: String,
        /// Let them come again
        #[arg(long)]
        undo: bool,
    },
    /// Take one away that holds nothing any more; its certificates are refused from then on
    Delete {
        /// Its name or id
        name: String,
    },
}

/// Verbs of the operator's token.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Print it
    Show,
    /// Make a new one; the old one is worth nothing from then on
    Renew,
}

/// Verbs of users.
#[derive(Debug, Subcommand)]
pub enum User {
    /// Make somebody an administrator: the first one, of whom nobody else could
    ///
    /// Somebody who has never logged in is awaited; say who knows them.
    Bootstrap {
        /// What they are called where they log in
        #[arg(long)]
        username: String,
        /// The configured name of the authenticator that knows them, if they have not logged in yet
        #[arg(long)]
        authenticator: Option<String>,
    },
}

/// Verbs of the authority.
#[derive(Debug, Subcommand)]
pub enum Pki {
    /// Which authorities there are, for whom an exchange waits, what ends soon, and what each node shows
    Status,
    /// Exchange the authority for another, while all nodes stay connected
    Rotate {
        /// Let the other one sign at once, though some server or connected node does not trust it yet
        #[arg(long)]
        now: bool,
    },
    /// Trust the authority before no more; it retires by itself once nobody needs it
    Retire {
        /// Also if that shuts out nodes that have not taken the other one's certificates
        #[arg(long)]
        cut_off: bool,
    },
}

/// Verbs of quotas.
#[derive(Debug, Subcommand)]
pub enum Quota {
    /// What it uses, and may use
    Show {
        /// The tenant
        tenant: String,
    },
    /// Set limits of its own
    Set {
        /// The tenant
        tenant: String,
        /// `vcpus=64`; `vcpus=default` gives the default back
        #[arg(required = true, value_name = "QUANTITY=LIMIT")]
        limits: Vec<String>,
    },
}

/// Something to be done, and what was to be found out before this process gave up root.
pub struct Ready {
    what: Admin,
    /// For history.
    user: String,
    file: Option<File>,
}

impl Admin {
    /// Opens the files that were named as whoever has called.
    pub fn prepare(self) -> anyhow::Result<Ready> {
        let file = match &self {
            Admin::Backup { file } => {
                let made = File::options().write(true).create_new(true).mode(0o600).open(file);
                Some(made.with_context(|| format!("{} cannot be made", file.display()))?)
            }
            Admin::Restore { file } => {
                Some(File::open(file).with_context(|| format!("{} cannot be read", file.display()))?)
            }
            _ => None,
        };
        Ok(Ready { what: self, user: user(), file })
    }
}

impl Ready {
    /// Does it. What is to be printed.
    pub async fn run(self, config: &Config) -> anyhow::Result<String> {
        let Ready { what, user, file } = self;
        match (what, file) {
            (Admin::Migrate, _) => schema::migrate(config).await,
            (Admin::Db(Db::Reset { yes_destroy_everything }), _) => {
                schema::reset(config, yes_destroy_everything).await
            }
            (Admin::Db(Db::RaiseEpoch), _) => schema::say_that_it_counts(config, &user).await,
            (Admin::Tenant(verb), _) => verbs::tenant(&Desk::open(config, &user).await?, verb).await,
            (Admin::Node(verb), _) => verbs::node(&Desk::open(config, &user).await?, config, verb).await,
            (Admin::User(verb), _) => users::user(&Desk::open(config, &user).await?, verb).await,
            (Admin::Pki(verb), _) => verbs::pki(&Desk::open(config, &user).await?, config, verb).await,
            (Admin::Quota(verb), _) => verbs::quota(&Desk::open(config, &user).await?, verb).await,
            (Admin::Token(Token::Show), _) => verbs::show_token(config),
            (Admin::Token(Token::Renew), _) => {
                verbs::renew_token(&Desk::open(config, &user).await?, config).await
            }
            (Admin::Backup { file: path }, Some(file)) => {
                let outcome = back_up(config, file, &path).await;
                if outcome.is_err() {
                    // It may be in a folder that we may not write to any more: what is in it says itself that it
                    // is no whole backup.
                    let _ = std::fs::remove_file(&path);
                }
                outcome
            }
            (Admin::Restore { file: path }, Some(file)) => bring_back(config, &user, file, &path).await,
            (Admin::Backup { .. } | Admin::Restore { .. }, None) => anyhow::bail!("no file was opened"),
        }
    }
}

async fn back_up(config: &Config, file: File, path: &Path) -> anyhow::Result<String> {
    let url: DbUrl = config.db.parse()?;
    let kept = backup(&url, &config.data, &file, &system_env()).await?;
    file.sync_all()?;
    let mut own = String::new();
    if config.pki.is_some() {
        own += "\nThe authority is from files of your own (`pki.ca`, `pki.cert`, `pki.key`): keep them yourself.";
    }
    if !matches!(config.sealing, Sealing::Own) {
        own += "\nSecrets are sealed with keys that you gave (`sealing`): without them they are lost, keep them yourself.";
    }
    Ok(format!(
        "{}: {} rows of {} tables and {} files, schema version {}. Keep it safe: it holds the cluster's keys.\n\
         Bytes of images (`blobs/`) and guests' disks (on the nodes) are not in it.{own}",
        path.display(),
        kept.rows,
        kept.tables,
        kept.files,
        kept.schema
    ))
}

async fn bring_back(config: &Config, user: &str, mut file: File, path: &Path) -> anyhow::Result<String> {
    let url: DbUrl = config.db.parse()?;
    app::private_folder(&config.data)?;
    let _alone = schema::alone(&url, config)?;
    let restored = restore(&url, &config.data, &mut file, &system_env())
        .await
        .with_context(|| path.display().to_string())?;
    let desk = Desk::open(config, user).await?;
    desk.store.note(&desk.caller, "database", "restore", &desk.asked).await?;
    Ok(format!(
        "{} rows of {} tables and {} files are back; the database's epoch is {}, so that agents obey it.\n\
         Bytes of images are not: copy `blobs/`, or upload them again.",
        restored.rows, restored.tables, restored.files, restored.db_epoch
    ))
}

/// Where verbs are carried out: a store beside a server that may be at work, and who asks.
struct Desk {
    store: Store,
    caller: Caller,
    asked: Asked,
}

impl Desk {
    async fn open(config: &Config, user: &str) -> anyhow::Result<Desk> {
        let asked = Asked { request_id: system_env().id("cli"), source: "local".into(), ..Asked::default() };
        let caller = Caller::operator(format!("admin CLI as {user}"), "admin CLI");
        let store = beside(config).await?;
        Ok(Desk { store, caller, asked })
    }
}

/// The store of a server that may be at work: its schema is left as it is.
pub(crate) async fn beside(config: &Config) -> anyhow::Result<Store> {
    let url: DbUrl = config.db.parse()?;
    Ok(Store::attach(&url, system_env(), resources::registry(), config.quota.clone()).await?)
}

/// Who has logged in, or who has started this: the kernel keeps the former through `sudo`.
fn user() -> String {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != u32::MAX);
    let uid = login.map_or_else(getuid, Uid::from_raw);
    match unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// One line that says all that is wrong.
fn said(error: Error, what: &str) -> anyhow::Error {
    match error {
        Error::Invalid(list) => {
            let all: Vec<String> =
                list.iter().map(|one| format!("`{}`: {}", one.field, one.reason)).collect();
            anyhow::anyhow!("{what}: {}", all.join("; "))
        }
        Error::NotFound => anyhow::anyhow!("{what}: there is none of this name or id"),
        other => anyhow::anyhow!("{what}: {other}"),
    }
}
