//! Whose turn it is: so many work at once, of one group at most so many, and of those that wait each group has the next
//! turn in its turn, however long its own line is.

use std::collections::{BTreeMap, VecDeque};

/// The number of somebody who waits.
pub type Ticket = u64;

/// Who works and who waits.
#[derive(Debug)]
pub struct Turns {
    most: usize,
    working: usize,
    groups: BTreeMap<String, Group>,
    /// Those that wait, the next one first.
    ring: VecDeque<String>,
    next: Ticket,
}

#[derive(Debug, Default)]
struct Group {
    most: usize,
    working: usize,
    waiting: VecDeque<Ticket>,
}

/// What there is for somebody who comes.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// They may work.
    Now,
    /// They wait.
    Later(Ticket),
}

impl Turns {
    /// So many work at once.
    pub fn new(most: usize) -> Turns {
        Turns { most, working: 0, groups: BTreeMap::new(), ring: VecDeque::new(), next: 0 }
    }

    /// Somebody of this group comes, of which at most so many work at once.
    pub fn come(&mut self, name: &str, most: usize) -> Place {
        let free = self.working < self.most;
        let group = self.groups.entry(name.to_owned()).or_default();
        group.most = most.max(1);
        // Whoever could go on does so at once: nobody waits while there is room for them.
        if free && group.waiting.is_empty() && group.working < group.most {
            group.working += 1;
            self.working += 1;
            return Place::Now;
        }
        self.next += 1;
        group.waiting.push_back(self.next);
        if group.waiting.len() == 1 {
            self.ring.push_back(name.to_owned());
        }
        Place::Later(self.next)
    }

    /// Somebody of this group has done their work; who may begin now.
    pub fn done(&mut self, name: &str) -> Vec<Ticket> {
        if let Some(group) = self.groups.get_mut(name) {
            group.working = group.working.saturating_sub(1);
            self.working = self.working.saturating_sub(1);
        }
        let begin = self.call();
        self.forget(name);
        begin
    }

    /// Somebody of this group waits no more; false: it was their turn already.
    pub fn leave(&mut self, name: &str, ticket: Ticket) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        let Some(at) = group.waiting.iter().position(|one| *one == ticket) else { return false };
        group.waiting.remove(at);
        if group.waiting.is_empty() {
            self.ring.retain(|one| one != name);
        }
        self.forget(name);
        true
    }

    /// Calls whoever may begin, each group in its turn.
    fn call(&mut self) -> Vec<Ticket> {
        let mut called = Vec::new();
        let mut passed = 0;
        while self.working < self.most && passed < self.ring.len() {
            let Some(name) = self.ring.pop_front() else { break };
            let Some(group) = self.groups.get_mut(&name) else { continue };
            if group.working >= group.most {
                passed += 1;
                self.ring.push_back(name);
                continue;
            }
            passed = 0;
            if let Some(ticket) = group.waiting.pop_front() {
                group.working += 1;
                self.working += 1;
                called.push(ticket);
            }
            if !group.waiting.is_empty() {
                self.ring.push_back(name);
            }
        }
        called
    }

    fn forget(&mut self, name: &str) {
        if self.groups.get(name).is_some_and(|group| group.working == 0 && group.waiting.is_empty()) {
            self.groups.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_take_turns_however_long_their_lines_are() {
        let mut turns = Turns::new(2);
        assert_eq!(turns.come("a", 2), Place::Now);
        assert_eq!(turns.come("a", 2), Place::Now);
        let many: Vec<Place> = (0..100).map(|_| turns.come("a", 2)).collect();
        let Place::Later(b) = turns.come("b", 2) else { panic!("there was no room") };
        let Place::Later(c) = turns.come("c", 2) else { panic!("there was no room") };
        assert_eq!(vec![Place::Later(turns.done("a")[0])], many[..1]);
        assert_eq!(turns.done("a"), vec![b]);
        assert_eq!(turns.done("a"), vec![c]);
        assert_eq!(vec![Place::Later(turns.done("b")[0])], many[1..2]);
    }

    #[test]
    fn a_group_leaves_room_for_others() {
        let mut turns = Turns::new(3);
        assert_eq!((turns.come("a", 2), turns.come("a", 2)), (Place::Now, Place::Now));
        let Place::Later(third) = turns.come("a", 2) else { panic!("two are enough") };
        assert_eq!(turns.come("b", 2), Place::Now);
        assert_eq!(turns.done("b"), Vec::<Ticket>::new());
        assert_eq!(turns.done("a"), vec![third]);
    }

    #[test]
    fn who_leaves_is_not_called_and_nothing_is_kept() {
        let mut turns = Turns::new(1);
        assert_eq!(turns.come("a", 1), Place::Now);
        let (Place::Later(first), Place::Later(second)) = (turns.come("b", 1), turns.come("b", 1)) else {
            panic!("there was no room")
        };
        assert!(turns.leave("b", first) && !turns.leave("b", first));
        assert_eq!(turns.done("a"), vec![second]);
        assert!(!turns.leave("b", second));
        assert_eq!(turns.done("b"), Vec::<Ticket>::new());
        assert!(turns.groups.is_empty() && turns.ring.is_empty() && turns.working == 0);
    }
}
