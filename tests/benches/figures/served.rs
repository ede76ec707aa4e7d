//! The API over a world, on a port of this machine, as a server has it: its listener, its layers, its token in a file.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use rhyzome_api::audit;
use rhyzome_api::auth::OperatorToken;
use rhyzome_api::log::{self, LogDuty};
use rhyzome_api::store::Keep;
use rhyzome_tests::door::Door;
use rhyzome_tests::face::Face;
use rhyzome_tests::world::World;
use tokio_util::sync::CancellationToken;

use crate::clients::Clients;

/// How many ask at the same time.
pub const AT_ONCE: usize = 64;

/// It serves until this goes.
pub struct Served {
    /// Where.
    pub address: SocketAddr,
    /// The operator's.
    pub token: String,
    _door: Door,
    _face: Option<Face>,
}

impl Served {
    /// The API over this world.
    pub fn api(world: &World) -> Result<Served> {
        let file = world.folder().join("operator.token");
        let known = OperatorToken::load_or_create(&file, world.store.env())?;
        let token = std::fs::read_to_string(&file)?.trim().to_owned();
        let face = Face::letting_in(world, vec![Arc::new(known)]);
        let mut served = Served::bare(face.router())?;
        (served.token, served._face) = (token, Some(face));
        Ok(served)
    }

    /// Any router, in the same way.
    pub fn bare(router: Router) -> Result<Served> {
        let door = Door::open(router);
        Ok(Served { address: door.address, token: "nobody's".into(), _door: door, _face: None })
    }

    /// Clients of it that ask so often together.
    pub fn clients(&self, questions: usize) -> Clients {
        Clients { server: self.address, token: self.token.clone(), at_once: AT_ONCE, questions, expects: 200 }
    }
}

/// Keeps the event log of this world, as one server of several does, until it is told to stop.
pub fn keep_log(world: &World, stop: &CancellationToken) -> Result<()> {
    let seal = Arc::new(audit::seal(world.folder())?);
    let duty = LogDuty { server: "one".into(), alone: false, seal, keep: Keep::default() };
    tokio::spawn(log::run(world.store.clone(), duty, stop.clone()));
    Ok(())
}
