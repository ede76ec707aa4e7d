//! What sessions of agents ask whenever there may be something new for their nodes: all that ask at the same time are
//! answered by the same few statements, of which each costs the more the more is new, and little where nothing is.

use std::collections::{HashMap, HashSet};

use super::db::{Conn, row};
use super::nodes::SessionStanding;
use super::report::{ASSIGNMENT, AssignmentRow, assignment};
use super::tx::{list, padded, places};
use super::{Store, findings, secrets};
use crate::kernel::Error;

/// So many orders of one node are read beside those of others; of one that has more to hear they are read by the page.
const FEW: i64 = 64;

/// What a session asks.
#[derive(Clone, Debug)]
pub struct Look {
    /// Whose it is.
    pub node: String,
    /// Its number.
    pub session: i64,
    /// Of the certificate that it was begun with.
    pub serial: String,
    /// Orders up to this number were sent.
    pub sent: i64,
    /// It has just begun: what the node was told to let go of, and has not, is told again.
    pub is_first: bool,
}

/// What it hears.
#[derive(Clone, Debug)]
pub struct News {
    /// Whether it may go on.
    pub standing: SessionStanding,
    /// What operators have decided: difference and verb.
    pub decisions: Vec<(String, String)>,
    /// What the node was told to let go of, and has not; for a first look, because a node forgets what is gone once it
    /// believes that this was heard.
    pub removals: Vec<AssignmentRow>,
    /// The orders above those that were sent, up to `head`; none if they are to be read by the page.
    pub orders: Vec<AssignmentRow>,
    /// The number of the node's highest order.
    pub head: i64,
    /// There are too many orders to have them here.
    pub is_far_behind: bool,
}

impl Store {
    /// Answers each, in their order.
    pub async fn news(&self, asked: &[Look]) -> Result<Vec<News>, Error> {
        let conn = &mut self.read().await?;
        let heads = heads(conn, asked).await?;
        let good = good_certificates(conn, asked).await?;
        let nodes: Vec<String> = asked.iter().map(|look| look.node.clone()).collect();
        let mut decisions = findings::carried_out(conn, &nodes).await?;
        let mut all: Vec<News> = asked.iter().map(|look| begin(look, &heads, &good)).collect();
        let is_behind = |(look, news): &(&Look, &News)| news.head > look.sent && !news.is_far_behind;
        let behind: Vec<_> = asked
            .iter()
            .zip(&all)
            .filter(is_behind)
            .map(|(look, news)| row![&look.node, look.sent, news.head])
            .collect();
        let new = "a.sequence > v.column2 AND a.sequence <= v.column3";
        let mut orders = self.assignments_of(conn, &behind, new).await?;
        let first = asked.iter().filter(|look| look.is_first);
        let first: Vec<_> = first.map(|look| row![&look.node, look.sent]).collect();
        let old = "a.remove = 1 AND a.sequence <= v.column2";
        let mut removals = self.assignments_of(conn, &first, old).await?;
        for (look, news) in asked.iter().zip(&mut all) {
            news.decisions = decisions.remove(&look.node).unwrap_or_default();
            news.orders = orders.remove(&look.node).unwrap_or_default();
            news.removals = removals.remove(&look.node).unwrap_or_default();
        }
        Ok(all)
    }

    /// Of these nodes and numbers the orders of which `which` is true, by node.
    async fn assignments_of(
        &self,
        conn: &mut Conn,
        of: &[Vec<super::db::Value>],
        which: &str,
    ) -> Result<HashMap<String, Vec<AssignmentRow>>, Error> {
        let mut all: HashMap<String, Vec<AssignmentRow>> = HashMap::new();
        if of.is_empty() {
            return Ok(all);
        }
        let of = padded(of);
        let sql = format!(
            "SELECT a.node, {ASSIGNMENT} FROM (VALUES {}) AS v JOIN assignment a ON a.node = v.column1 AND {which} \
             JOIN resource r ON r.id = a.object ORDER BY a.node, a.sequence",
            places(of.len(), of[0].len(), 1)
        );
        let rows = conn.rows(&sql, &of.concat()).await?;
        let nodes = rows.iter().map(|row| row.text("node")).collect::<Result<Vec<_>, _>>()?;
        let mut orders = rows.iter().map(assignment).collect::<Result<Vec<_>, _>>()?;
        secrets::open_for(conn, &self.context, &mut orders).await?;
        for (node, order) in nodes.into_iter().zip(orders) {
            let of_node = all.entry(node).or_default();
            // Whoever makes the list longer names one more than once.
            if of_node.last().is_none_or(|last| last.sequence != order.sequence) {
                of_node.push(order);
            }
        }
        Ok(all)
    }
}

/// What is known of a node without its orders.
fn begin(look: &Look, heads: &HashMap<String, Head>, good: &HashSet<(String, String)>) -> News {
    let is_good = good.contains(&(look.node.clone(), look.serial.clone()));
    let Some(head) = heads.get(&look.node).filter(|_| is_good) else {
        return News::of(SessionStanding::Revoked, look, look.sent);
    };
    let standing = match (head.session == look.session, head.is_connected) {
        (false, _) => SessionStanding::Superseded,
        (true, false) => SessionStanding::Buried,
        (true, true) => SessionStanding::Newest,
    };
    News::of(standing, look, head.sequence)
}

impl News {
    fn of(standing: SessionStanding, look: &Look, head: i64) -> News {
        News {
            standing,
            decisions: Vec::new(),
            removals: Vec::new(),
            orders: Vec::new(),
            head,
            is_far_behind: head - look.sent > FEW,
        }
    }
}

/// How far a node is.
struct Head {
    session: i64,
    is_connected: bool,
    sequence: i64,
}

async fn heads(conn: &mut Conn, asked: &[Look]) -> Result<HashMap<String, Head>, Error> {
    let nodes: Vec<String> = asked.iter().map(|look| look.node.clone()).collect();
    let (list, values) = list(&nodes);
    let sql = format!("SELECT node, session, connected, sequence FROM node_state WHERE node IN {list}");
    let mut all = HashMap::new();
    for row in conn.rows(&sql, &values).await? {
        let head = Head {
            session: row.int("session")?,
            is_connected: row.truth("connected")?,
            sequence: row.int("sequence")?,
        };
        all.insert(row.text("node")?, head);
    }
    Ok(all)
}

/// Certificates that are good, and whose nodes are there: node and serial.
async fn good_certificates(conn: &mut Conn, asked: &[Look]) -> Result<HashSet<(String, String)>, Error> {
    let serials: Vec<String> = asked.iter().map(|look| look.serial.clone()).collect();
    let (list, values) = list(&serials);
    let sql = format!(
        "SELECT c.node, c.serial FROM certificate c JOIN live l ON l.id = c.node \
         WHERE c.serial IN {list} AND c.revoked_at IS NULL"
    );
    let rows = conn.rows(&sql, &values).await?;
    rows.iter().map(|row| Ok((row.text("node")?, row.text("serial")?))).collect()
}
