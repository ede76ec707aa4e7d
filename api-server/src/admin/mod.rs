//! What an operator does on the machine itself, straight on the database: for the first day and for bad days.

mod schema;

use clap::Subcommand;

use crate::config::Config;

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Bring the database's schema to this program's version; again is nothing
    Migrate,
    /// The database as a whole
    #[command(subcommand)]
    Db(Db),
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
}

impl Admin {
    /// Does it. What is to be printed.
    pub async fn run(self, config: &Config) -> anyhow::Result<String> {
        match self {
            Admin::Migrate => schema::migrate(config).await,
            Admin::Db(Db::Reset { yes_destroy_everything }) => {
                schema::reset(config, yes_destroy_everything).await
            }
        }
    }
}
