use proptest::prelude::*;
use tokio::sync::mpsc::{self, Receiver};

use super::*;

const READY: &[u8] =
    b"{\"event\":\"ready\",\"protocol\":1,\"free_pages\":5,\"scenarios\":[\"touch\",\"verify\"]}\n";

fn ready() -> Agent {
    let mut agent = Agent::default();
    assert_eq!(agent.receive(READY), Some(AgentEvent::Ready { free_pages: 5 }));
    agent
}

fn exec(agent: &mut Agent, capacity: usize) -> Receiver<ExecEvent> {
    let (sender, receiver) = mpsc::channel(capacity);
    agent.exec("touch".into(), &[], sender).expect("touch is known");
    receiver
}

fn drained(receiver: &mut Receiver<ExecEvent>) -> Vec<ExecEvent> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

fn sent(agent: &mut Agent) -> Vec<u8> {
    let mut bytes = Vec::new();
    agent.send(|chunk| {
        bytes.extend_from_slice(chunk);
        chunk.len()
    });
    bytes
}

#[test]
fn a_scenario_is_sent_and_its_output_ends_with_its_exit_code() {
    let mut agent = ready();
    let mut output = exec(&mut agent, 8);
    assert_eq!(sent(&mut agent), b"{\"id\":1,\"exec\":\"touch\",\"args\":[]}\n");
    // In two pieces, to be put together.
    agent.receive(b"{\"id\":1,\"line\":\"a\"}\n{\"id\":1,");
    agent.receive(b"\"exit\":2}\n");
    assert_eq!(
        drained(&mut output),
        [ExecEvent::Line("a".into()), ExecEvent::Exit { code: 2, lost: 0 }]
    );
    exec(&mut agent, 8);
}

#[test]
fn before_ready_there_is_no_agent_and_later_only_known_scenarios() {
    let (sender, _receiver) = mpsc::channel(2);
    let refused = Agent::default().exec("touch".into(), &[], sender.clone());
    assert_eq!(refused, Err(VmError::NoAgent));
    assert!(!Agent::default().power_off());
    let refused = ready().exec("dance".into(), &[], sender);
    assert_eq!(
        refused,
        Err(VmError::NoSuchScenario { name: "dance".into(), known: "touch, verify".into() })
    );
}

#[test]
fn a_second_scenario_is_refused_while_one_runs() {
    let mut agent = ready();
    let _output = exec(&mut agent, 2);
    let (sender, _receiver) = mpsc::channel(2);
    assert_eq!(
        agent.exec("verify".into(), &[], sender),
        Err(VmError::Busy { running: "touch".into() })
    );
    assert!(agent.power_off(), "power-off is not a scenario and goes through");
}

/// Each repetition of the request used to wait in memory for a guest that reads nothing.
#[test]
fn a_repeated_power_off_is_sent_once_and_again_after_a_reset() {
    let mut agent = ready();
    assert!(agent.power_off() && agent.power_off());
    let lines = |agent: &mut Agent| sent(agent).iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines(&mut agent), 1);
    agent.reset();
    assert!(!agent.power_off(), "nobody there");
    agent.receive(READY);
    assert!(agent.power_off());
    assert_eq!(lines(&mut agent), 1);
}

#[test]
fn a_slow_reader_loses_lines_but_never_the_end() {
    let mut agent = ready();
    let mut output = exec(&mut agent, 2);
    for _ in 0..10 {
        agent.receive(b"{\"id\":1,\"line\":\"x\"}\n");
    }
    agent.receive(b"{\"id\":1,\"exit\":0}\n");
    assert_eq!(
        drained(&mut output),
        [ExecEvent::Line("x".into()), ExecEvent::Exit { code: 0, lost: 9 }]
    );
    assert_eq!(agent.counters().lost, 9);
}

#[test]
fn overlong_malformed_and_stray_lines_are_counted_and_the_next_line_is_good() {
    let mut agent = ready();
    agent.receive(&[b'x'; 3 * MAX_LINE_BYTES]);
    agent.receive(b"\nnot json\n{\"id\":77,\"exit\":0}\n{\"id\":77,\"line\":\"\"}\n");
    let counters = agent.counters();
    assert_eq!((counters.overlong, counters.malformed, counters.stray), (1, 1, 2));
    assert!(agent.receive(READY).is_some());
}

#[test]
fn the_longest_line_is_accepted() {
    let mut agent = ready();
    let mut output = exec(&mut agent, 4);
    let frame = "{\"id\":1,\"line\":\"\"}\n".len();
    let text = "y".repeat(MAX_LINE_BYTES - frame);
    agent.receive(format!("{{\"id\":1,\"line\":\"{text}\"}}\n").as_bytes());
    assert_eq!(drained(&mut output), [ExecEvent::Line(text)]);
}

#[test]
fn a_port_that_takes_little_gets_the_rest_later() {
    let mut agent = ready();
    let _output = exec(&mut agent, 2);
    let mut got = Vec::new();
    for _ in 0..100 {
        let mut offered = false;
        agent.send(|chunk| {
            if std::mem::replace(&mut offered, true) {
                return 0;
            }
            got.push(chunk[0]);
            1
        });
    }
    assert_eq!(got, b"{\"id\":1,\"exec\":\"touch\",\"args\":[]}\n");
}

#[test]
fn a_reset_closes_the_stream_and_ids_go_on() {
    let mut agent = ready();
    let mut output = exec(&mut agent, 2);
    agent.reset();
    assert_eq!(output.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    assert!(agent.scenarios().is_empty());
    agent.receive(READY);
    let _output = exec(&mut agent, 2);
    assert!(sent(&mut agent).starts_with(b"{\"id\":2,"));
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_are_survived_in_bounded_memory(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..50),
    ) {
        let mut agent = ready();
        let _output = exec(&mut agent, 2);
        for piece in &pieces {
            agent.receive(piece);
            prop_assert!(agent.line.len() < MAX_LINE_BYTES);
        }
    }

    #[test]
    fn cutting_the_stream_anywhere_changes_nothing(cut in 0..READY.len()) {
        let mut agent = Agent::default();
        let first = agent.receive(&READY[..cut]);
        prop_assert_eq!(first, None);
        let second = agent.receive(&READY[cut..]);
        prop_assert_eq!(second, Some(AgentEvent::Ready { free_pages: 5 }));
    }
}
