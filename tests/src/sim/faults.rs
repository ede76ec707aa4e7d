//! What goes wrong.

use std::time::Duration;

use rhyzome_api::kernel::Error;

use super::{AGENTS, SERVERS, Sim};

impl Sim {
    pub(super) async fn misfortune(&mut self) -> Result<(), Error> {
        let house = self.house.clone();
        let agent = &mut self.agents[house.pick(AGENTS)];
        let server = &mut self.servers[house.pick(SERVERS)];
        match house.below(13) {
            0 | 1 => {
                house.fault("a connection is lost", &agent.name);
                agent.line.cut(&house);
            }
            2 | 3 => {
                let dark = !agent.line.dark.is_on();
                house.fault("a line is dark, or is not any more", format!("{}: {dark}", agent.name));
                agent.line.dark.set(dark);
            }
            4 => {
                house.fault("an agent is killed", &agent.name);
                agent.end();
            }
            5 => {
                house.fault("a machine reboots", &agent.name);
                agent.reboot();
            }
            6 => {
                house.fault("an agent stands still, or goes on", &agent.name);
                agent.stand_still_or_go_on();
            }
            7 => {
                house.fault("a disk is full, or has room again", &agent.name);
                agent.fill_or_relieve();
            }
            8 => {
                let times = 1 + house.below(40);
                house.fault("a server is cut off from its database", format!("{}: {times}", server.index));
                server.strikes.cut_off(times);
            }
            9 => {
                let seconds = i64::try_from(house.below(600)).unwrap() - 300;
                house.fault("the clock jumps", format!("by {seconds} s"));
                self.house.time.pass(seconds);
            }
            10 => {
                if server.stand_still_or_go_on() {
                    house.fault("a server stands still, or goes on", server.index);
                }
            }
            11 => {
                let seconds = 10 + house.below(110);
                house.fault("a node is cut off", format!("{}: for {seconds} s", agent.name));
                agent.line.cut_off(Duration::from_secs(seconds));
            }
            _ if house.percent(30) => {
                house.fault("a server is killed", server.index);
                server.end();
            }
            _ => server.doom(),
        }
        Ok(())
    }
}
