//! The course of a run, from blank machines through faults to the healed cluster, and who calls in
//! it: clients, the creators of databases, and the course itself at the end.

use std::time::Duration;

use highwater_core::NodeId;
use highwater_node::api::{Consistency, ListQuery};

use super::{
    agenda::now_ns,
    cluster::{Cluster, Event},
};
use crate::{
    history::{Ask, Call, Told},
    oracles::liveness::{CONVERGENCE_NS, LIVENESS_TIMEOUT, REST_MS},
    plan::{Plan, Weather},
    rng::Rng,
    stats::Seen,
    workload::{DATABASES, LATE_DATABASE, Workload, last_op},
};

const MS: u64 = 1_000_000;

/// How far the run has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing goes wrong until the first databases stand.
    Stands,
    /// Clients call, faults strike.
    Lives,
    /// Clients end their last calls.
    Ends,
    /// All is healed; the late database is waited for.
    Gathers,
    /// Each database takes a write through each node: the n-th of these.
    Writes(usize),
    /// All replicas come to the same.
    Agrees {
        /// They did, and the last audit was waited for.
        rested: bool,
    },
    /// Each database is read from each node, in both ways: the n-th of these.
    Reads(usize),
    Done,
}

/// Who makes calls, one at a time.
enum Caller {
    Client(Box<Workload>),
    /// Creates a database, trying for as long as it takes.
    Creator {
        name: &'static str,
        rng: Rng,
    },
    /// The course itself.
    Course,
}

/// The course of one run.
pub(super) struct Course {
    phase: Phase,
    /// Rises with each thing that the course plans for itself: an earlier one is no more.
    turn: u64,
    deadline_ns: u64,
    callers: Vec<Caller>,
    /// Clients that have not ended.
    clients: u64,
}

impl Course {
    pub(super) fn new(plan: &std::sync::Arc<Plan>, seed: u64) -> Course {
        let client = |id| Caller::Client(Box::new(Workload::new(plan.clone(), seed, id)));
        let creator =
            |name: &'static str| Caller::Creator { name, rng: Rng::stream(seed, name, 0) };
        let creators = DATABASES.into_iter().chain([LATE_DATABASE]).map(creator);
        Course {
            phase: Phase::Stands,
            turn: 0,
            deadline_ns: u64::MAX,
            callers: (0..plan.clients)
                .map(client)
                .chain(creators)
                .chain([Caller::Course])
                .collect(),
            clients: plan.clients,
        }
    }

    /// Whether the run is over.
    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether the faults are over.
    pub(super) fn is_healed(&self) -> bool {
        !matches!(self.phase, Phase::Stands | Phase::Lives | Phase::Ends)
    }
}

impl Cluster {
    /// The first things that happen.
    pub(super) fn begin(&mut self) {
        let mut rng = Rng::stream(self.world.seed, "course", 0);
        for node in self.plan.clone().nodes.iter() {
            self.agenda.after(rng.below(500) * MS, Event::Start(*node));
        }
        if self.plan.from_birth {
            self.live();
            for nth in 0..DATABASES.len() {
                self.agenda.after(0, Event::Caller(self.creator(nth)));
            }
        } else {
            self.network.set_weather(Weather::CALM);
            self.agenda.after(0, Event::Caller(self.creator(0)));
            self.course_at(CONVERGENCE_NS);
        }
    }

    /// The caller that creates the n-th database.
    fn creator(&self, nth: usize) -> usize {
        self.plan.clients as usize + nth
    }

    fn course_caller(&self) -> usize {
        self.creator(DATABASES.len() + 1)
    }

    /// The course goes on at this time, and not before.
    fn course_at(&mut self, at_ns: u64) {
        self.course.turn += 1;
        self.agenda.at(at_ns, Event::Course(self.course.turn));
    }

    /// Clients begin to call, and faults to strike.
    fn live(&mut self) {
        self.course.phase = Phase::Lives;
        let plan = self.plan.clone();
        self.network.set_weather(plan.weather);
        for (nth, (at_ms, _)) in plan.faults.iter().enumerate() {
            self.agenda.after(at_ms * MS, Event::Strike(nth));
        }
        for client in 0..plan.clients as usize {
            self.think(client);
        }
        let late = self.creator(DATABASES.len());
        self.agenda.after(plan.late_database_ms * MS, Event::Caller(late));
        self.course_at(now_ns() + plan.faults_ms * MS);
    }

    // --- callers ---

    /// A caller makes its next call.
    pub(super) fn caller_goes_on(&mut self, caller: usize) {
        match self.course.callers[caller] {
            Caller::Client(_) if self.course.phase != Phase::Lives => {
                self.course.clients -= 1;
                if self.course.clients == 0 {
                    self.heal_all();
                }
            }
            Caller::Client(_) => self.client_calls(caller),
            Caller::Creator { .. } => self.creator_calls(caller),
            Caller::Course => {}
        }
    }

    fn think(&mut self, client: usize) {
        let Caller::Client(workload) = &mut self.course.callers[client] else { return };
        let ms = workload.think_ms();
        self.agenda.after(ms * MS, Event::Caller(client));
    }

    fn client_calls(&mut self, client: usize) {
        let Caller::Client(workload) = &mut self.course.callers[client] else { return };
        let node = workload.node();
        if self.is_up(node) {
            let databases = self.judge.databases();
            let names: Vec<String> = databases.into_iter().map(|(name, _)| name).collect();
            let Caller::Client(workload) = &mut self.course.callers[client] else { return };
            if let Some((database, ask, timeout)) = workload.call(&names, now_ns()) {
                return self.call(client, node, &database, ask, timeout);
            }
        }
        self.think(client);
    }

    fn creator_calls(&mut self, caller: usize) {
        let Caller::Creator { name, rng } = &mut self.course.callers[caller] else { return };
        let (name, node) = (*name, *rng.pick(&self.plan.nodes));
        let timeout = Duration::from_millis(rng.range(500, 3_000));
        if self.is_up(node) {
            self.call(caller, node, name, Ask::Create, timeout);
        } else {
            self.create_again(caller);
        }
    }

    fn create_again(&mut self, caller: usize) {
        let Caller::Creator { rng, .. } = &mut self.course.callers[caller] else { return };
        let ms = rng.range(20, 300);
        self.agenda.after(ms * MS, Event::Caller(caller));
    }

    /// A caller has its answer.
    pub(super) fn told(&mut self, caller: usize, call: Call, told: Told) {
        match &mut self.course.callers[caller] {
            Caller::Client(workload) => {
                workload.learn(call.database, call.ask, told);
                self.think(caller);
            }
            Caller::Creator { name, .. } if matches!(told, Told::Created(..)) => {
                let name = *name;
                self.created(caller, name);
            }
            Caller::Creator { .. } => self.create_again(caller),
            Caller::Course => self.course_told(&call, &told),
        }
    }

    fn created(&mut self, caller: usize, name: &str) {
        if name == LATE_DATABASE {
            self.world.saw(Seen::LateDatabase);
        } else if self.course.phase == Phase::Stands {
            // One after the other, and then the clients.
            if caller + 1 < self.creator(DATABASES.len()) {
                self.creator_calls(caller + 1);
            } else {
                self.live();
            }
        }
    }

    // --- the course ---

    /// What the course has planned for now.
    pub(super) fn course_goes_on(&mut self, turn: u64) {
        if turn != self.course.turn {
            return;
        }
        match self.course.phase {
            Phase::Stands => {
                let what = "no database could be created on a healthy cluster".to_owned();
                self.world.fail("liveness", what);
            }
            Phase::Lives => self.course.phase = Phase::Ends,
            Phase::Gathers => self.gather(),
            Phase::Writes(nth) => self.write(nth),
            Phase::Agrees { rested } => self.agree(rested),
            Phase::Reads(nth) => self.read_back(nth),
            Phase::Ends | Phase::Done => {}
        }
    }

    fn heal_all(&mut self) {
        self.course.phase = Phase::Gathers;
        self.course.deadline_ns = now_ns() + CONVERGENCE_NS;
        self.heal();
        self.judge.calm(true);
        self.gather();
    }

    fn is_late(&self) -> bool {
        now_ns() >= self.course.deadline_ns
    }

    fn fail_liveness(&mut self, why: &str) {
        let bound = CONVERGENCE_NS / 1_000_000_000;
        let databases = self.judge.databases().len();
        let what = format!("{bound} s after the healing {databases} databases stand: {why}");
        self.world.fail("liveness", what);
    }

    fn gather(&mut self) {
        if self.judge.databases().len() > DATABASES.len() {
            self.write(0);
        } else if self.is_late() {
            self.fail_liveness("one is missing");
        } else {
            self.course_at(now_ns() + 100 * MS);
        }
    }

    /// The n-th of all nodes and databases.
    fn nth_pair(&self, nth: usize) -> Option<(NodeId, String)> {
        let databases = self.judge.databases();
        let node = self.plan.nodes.get(nth / databases.len())?;
        Some((*node, databases[nth % databases.len()].0.clone()))
    }

    fn write(&mut self, nth: usize) {
        self.course.phase = Phase::Writes(nth);
        let Some((node, database)) = self.nth_pair(nth) else { return self.agree(false) };
        if self.is_up(node) {
            let ask = Ask::Write(last_op(self.world.tick()));
            self.call(self.course_caller(), node, &database, ask, LIVENESS_TIMEOUT);
        } else if self.is_late() {
            self.fail_liveness(&format!("{node:?} does not run"));
        } else {
            self.course_at(now_ns() + 50 * MS);
        }
    }

    /// Waits until all hold the same, and still do once the last audit is over.
    fn agree(&mut self, rested: bool) {
        self.course.phase = Phase::Agrees { rested };
        let why = self.judge.unsettled(&self.plan.nodes);
        if why.is_empty() && rested {
            self.read_back(0);
        } else if why.is_empty() {
            self.course.phase = Phase::Agrees { rested: true };
            self.course_at(now_ns() + REST_MS * MS);
        } else if self.is_late() {
            self.fail_liveness(&format!("{why:?}"));
        } else {
            self.course_at(now_ns() + 100 * MS);
        }
    }

    /// Reads every database from every replica, and once linearizably: the judge compares.
    fn read_back(&mut self, nth: usize) {
        self.course.phase = Phase::Reads(nth);
        let Some((node, database)) = self.nth_pair(nth / 2) else {
            self.judge.finish(&self.plan.nodes);
            self.course.phase = Phase::Done;
            return;
        };
        let consistency = [Consistency::Local(None), Consistency::Linearizable][nth % 2];
        let query = ListQuery { limit: 1_000, values: true, ..ListQuery::default() };
        let ask = Ask::List(query, consistency);
        self.call(self.course_caller(), node, &database, ask, LIVENESS_TIMEOUT);
    }

    fn course_told(&mut self, call: &Call, told: &Told) {
        match (self.course.phase, told) {
            (Phase::Writes(nth), Told::Written(_)) => self.write(nth + 1),
            (Phase::Writes(_), told) if self.is_late() => {
                let what = format!("{:?}, {}: a write ends as {told:?}", call.node, call.database);
                self.fail_liveness(&what);
            }
            (Phase::Writes(_), _) => self.course_at(now_ns() + 50 * MS),
            (Phase::Reads(nth), Told::Listed(page))
                if page.applied == self.judge.last_applied(page.group) =>
            {
                self.read_back(nth + 1);
            }
            (_, told) => {
                let what =
                    format!("{:?} can't read {}: {}", call.node, call.database, told.brief());
                self.world.fail("liveness", what);
            }
        }
    }
}
