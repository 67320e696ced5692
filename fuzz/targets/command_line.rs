//! Any command line: it is taken or refused, and what was taken reads the same when it is written out in full.

#![no_main]

use handover::cmdline::{Kinds, Mode, Options, parse};
use libfuzzer_sys::fuzz_target;

const KINDS: Kinds<&str> =
    Kinds { names: "panic, spin", find: |word| ["panic", "spin"].into_iter().find(|kind| *kind == word) };

fuzz_target!(|line: &str| {
    match parse(line, &KINDS) {
        Ok(options) => {
            let again = written(&options);
            assert_eq!(parse(&again, &KINDS), Ok(options), "{again}");
        }
        // What is said of it goes onto a console.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn written(options: &Options<'_, &str>) -> String {
    let mode = match options.mode {
        Mode::Test => "test".to_owned(),
        Mode::Run => "run".to_owned(),
        Mode::List => "list".to_owned(),
        Mode::Misbehave(kind) => format!("misbehave kind={kind}"),
    };
    let log = options.log.as_str().to_ascii_lowercase();
    let Options { workload, seed, timeout, .. } = options;
    let mut line = format!("mode={mode} workload={workload} seed={seed} timeout={timeout} log={log}");
    if let Some(filter) = options.filter {
        line += &format!(" filter={filter}");
    }
    if let Some(rule) = options.sabotage {
        line += &format!(" sabotage={rule}");
    }
    if let Some(rounds) = options.rounds {
        line += &format!(" rounds={rounds}");
    }
    line
}
