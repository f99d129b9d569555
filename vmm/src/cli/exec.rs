//! `exec`: a scenario's output as it comes.

use aerostat_api::{ExecEvent, ExecRequest, Scenarios};

use super::args::ExecOptions;
use super::failure::Failure;
use super::output;
use crate::exit_code;

/// Runs a scenario; its exit code is the command's.
pub(super) fn exec(options: ExecOptions) -> Result<u8, Failure> {
    let client = options.target.client()?;
    let Some(scenario) = options.scenario else {
        return list(&client.scenarios()?, options.json);
    };
    for event in client.exec(&ExecRequest { scenario, args: options.args })? {
        let event = event?;
        if options.json {
            output::line(serde_json::to_string(&event).map_err(std::io::Error::from)?)?;
        }
        match event {
            ExecEvent::Line { line } if !options.json => output::line(line)?,
            ExecEvent::Line { .. } => {}
            ExecEvent::Exit { exit, lost } => {
                if lost > 0 {
                    eprintln!("aerostat: {lost} lines of output were lost: this reader was slow");
                }
                return Ok(process_code(exit));
            }
        }
    }
    Err(Failure::other("The VM ended before the scenario did"))
}

fn list(scenarios: &Scenarios, is_json: bool) -> Result<u8, Failure> {
    if is_json {
        output::json(scenarios)?;
    } else {
        scenarios.scenarios.iter().try_for_each(output::line)?;
    }
    Ok(exit_code::SUCCESS)
}

/// What fits a process's exit code stays; what does not becomes 255, never a success.
fn process_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_does_not_fit_is_never_a_success() {
        assert_eq!(process_code(0), 0);
        assert_eq!(process_code(127), 127);
        assert_eq!(process_code(256), 255);
        assert_eq!(process_code(-1), 255);
    }
}
