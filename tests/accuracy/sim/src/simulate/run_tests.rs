//! What an application is said to do, it does.

use super::app::{App, Keyed, Polls, plain};
use super::apps::apps;
use super::run::run;
use super::seen::{Begun, Seen, SeenCall, Size};
use std::collections::HashMap;

const SIZE: Size = Size {
    requests: 4000,
    quiet: 1,
};

fn named(name: &str) -> App {
    apps().into_iter().find(|app| app.name == name).unwrap()
}

fn events(app: &App, clients: usize) -> Vec<(u64, Seen)> {
    run(app, clients, SIZE, 3).0
}

fn calls(events: &[(u64, Seen)]) -> impl Iterator<Item = (u64, &SeenCall)> {
    events.iter().filter_map(|(us, event)| match event {
        Seen::Call(call) => Some((*us, call)),
        _ => None,
    })
}

fn begun(events: &[(u64, Seen)]) -> impl Iterator<Item = (u64, &Begun)> {
    events.iter().filter_map(|(us, event)| match event {
        Seen::Begin(begun) => Some((*us, begun)),
        _ => None,
    })
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = apps().iter().map(|app| app.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn each_request_ends_once_and_each_call_too() {
    for app in apps() {
        let events = events(&app, 8);
        let polls = app.polls.as_ref().map_or(0, |polls| polls.clients);
        let requests = begun(&events).count();
        let ends = |event: &&(u64, Seen)| matches!(event.1, Seen::End(_) | Seen::BrokenOff(_));
        let ended = events.iter().filter(ends).count();
        assert!(requests >= 4000, "{}", app.name);
        assert_eq!(requests - ended, polls, "{}", app.name);
    }
}

#[test]
fn as_many_are_broken_off_as_it_says_and_go_on() {
    for (name, least, most) in [("cancelled-5", 0.03, 0.05), ("cancelled-30", 0.2, 0.3)] {
        let events = events(&named(name), 8);
        let mut gone = HashMap::new();
        let mut later = 0;
        for (us, event) in &events {
            match event {
                Seen::BrokenOff(id) => assert!(gone.insert(*id, *us).is_none()),
                Seen::End(id) => assert!(!gone.contains_key(id)),
                Seen::Call(call) => {
                    later += usize::from(call.owner.is_some_and(|id| gone.contains_key(&id)));
                }
                _ => {}
            }
        }
        let share = gone.len() as f64 / 4000.0;
        assert!((least..most).contains(&share), "{name}: {share}");
        // Half of them or so were in the first of two calls.
        assert!(later * 4 > gone.len(), "{name}: {later} of {}", gone.len());
    }
}

#[test]
fn a_job_is_made_after_every_second_answer_when_it_says() {
    for (name, from, to) in [("job-at-once", 0, 2_000), ("job-later", 2_000, 3_000_000)] {
        let events = events(&named(name), 8);
        let mut answered = HashMap::new();
        let mut first = HashMap::new();
        for (us, event) in &events {
            match event {
                Seen::End(id) => {
                    answered.insert(*id, *us);
                }
                Seen::Call(call) => {
                    if let Some(at) = call.owner.and_then(|owner| answered.get(&owner)) {
                        first.entry(call.owner).or_insert(us - at);
                    }
                }
                _ => {}
            }
        }
        let share = first.len() as f64 / 4000.0;
        assert!((0.4..0.55).contains(&share), "{name}: {share}");
        let outside = |after: &&u64| !(from..=to).contains(*after);
        assert_eq!(first.values().filter(outside).count(), 0, "{name}");
    }
}

#[test]
fn a_background_begins_in_the_middle() {
    let events = events(&named("background-begins"), 8);
    let middle = begun(&events).nth(1999).unwrap().0;
    let nobodys = || calls(&events).filter(|(_, call)| call.owner.is_none());
    assert!(nobodys().all(|(us, _)| us > middle));
    let seconds = (events.last().unwrap().0 - middle) as f64 / 1e6;
    let rate = nobodys().count() as f64 / seconds;
    assert!((14.0..26.0).contains(&rate), "{rate} a second");
}

#[test]
fn a_flag_swaps_what_two_routes_call() {
    let events = events(&named("flag"), 8);
    let middle = begun(&events).nth(2050).unwrap().0;
    let routes: HashMap<u64, (u64, u32)> = begun(&events)
        .map(|(us, begun)| (begun.id, (us, begun.route)))
        .collect();
    let early = begun(&events).nth(1900).unwrap().0;
    for (_, call) in calls(&events) {
        let (us, route) = routes[&call.owner.unwrap()];
        let never = match route {
            100 if us < early => 3,
            101 if us < early => 1,
            100 if us > middle => 1,
            101 if us > middle => 3,
            _ => 0,
        };
        assert_ne!(call.kind, never, "route {route}");
    }
}

#[test]
fn nothing_is_done_while_the_application_stands_still() {
    for name in ["stalls", "event-loop-stalls"] {
        let app = named(name);
        let events = events(&app, 8);
        let still = |us: u64| us % 2_000_000 < 200_000;
        assert!(calls(&events).all(|(us, _)| !still(us)), "{name}");
        let returned = |event: &(u64, Seen)| matches!(event.1, Seen::CallEnd(_)) && still(event.0);
        assert!(events.iter().any(returned), "{name}");
        // What had begun takes as long as ever, but for the stall.
        let plain = run(&plain(), 8, SIZE, 3).0;
        let (long, short) = (events.last().unwrap().0, plain.last().unwrap().0);
        assert!(long > short + short / 20, "{name}");
    }
}

#[test]
fn a_poll_waits_and_makes_one_call() {
    let mut app = named("long-polls");
    app.polls = Some(Polls {
        clients: 10,
        seconds: 5.0,
    });
    let events = events(&app, 8);
    let polls: HashMap<u64, u64> = begun(&events)
        .filter(|(_, begun)| begun.route == 104)
        .map(|(us, begun)| (begun.id, us))
        .collect();
    let waited: Vec<f64> = calls(&events)
        .filter_map(|(us, call)| Some((us - polls.get(&call.owner?)?) as f64 / 1e6))
        .collect();
    assert!(waited.len() > 20 && waited.len() <= polls.len());
    let whole = waited.iter().filter(|s| (4.99..5.1).contains(*s)).count();
    assert!(waited.len() - whole <= 10 && whole > 10);
}

#[test]
fn no_more_jobs_are_made_at_once_than_there_are_workers() {
    let events = events(&named("queue-of-jobs"), 16);
    let (mut out, mut most) = (HashMap::new(), 0);
    for (_, event) in &events {
        match event {
            Seen::Call(call) if call.kind <= 3 => {
                out.insert(call.id, ());
            }
            Seen::CallEnd(id) => {
                out.remove(id);
            }
            _ => {}
        }
        most = most.max(out.len());
    }
    assert_eq!(most, 2);
}

#[test]
fn a_connection_is_of_one_request_at_a_time() {
    for (name, threads) in [("client-per-connection", 16), ("client-per-thread", 8)] {
        let events = events(&named(name), 16);
        let (mut taken, mut owners) = (HashMap::new(), HashMap::new());
        for (_, event) in &events {
            match event {
                Seen::Call(call) => {
                    assert!(call.connection > 0);
                    let owner = call.owner.unwrap();
                    let was = taken.insert(call.connection, owner);
                    assert!(was.is_none_or(|was| was == owner || owners.contains_key(&was)));
                }
                Seen::End(id) => {
                    owners.insert(*id, ());
                }
                _ => {}
            }
        }
        assert_eq!(taken.len(), threads, "{name}");
    }
}

#[test]
fn as_many_calls_have_a_key_as_it_says() {
    for app in apps() {
        let events = events(&app, 8);
        let of_kind = app.keyed.and_then(|keyed: Keyed| keyed.kind);
        let asked = || calls(&events).filter(|(_, call)| of_kind.is_none_or(|k| k == call.kind));
        let keyed = calls(&events).filter(|(_, call)| call.keyed).count();
        let share = keyed as f64 / asked().count() as f64;
        let expected = app.keyed.map_or(0.0, |keyed| keyed.share);
        assert!((share - expected).abs() < 0.03, "{}: {share}", app.name);
    }
}
