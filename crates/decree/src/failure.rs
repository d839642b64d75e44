//! How a command ends when it does not succeed: one line, and an exit code.

use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    kind: &'static str,
    line: Option<String>,
}

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Done.
    Done = 0,
    /// Answered with an error, or not found.
    Answered = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The write may or may not have happened.
    OutcomeUnknown = 3,
    /// No node could be reached.
    NobodyReachable = 4,
}

impl Failure {
    /// An expected answer that is no success, such as an absent key: the line stands for itself.
    pub(crate) fn expected(kind: &'static str, line: impl Into<String>) -> Failure {
        Failure { code: Code::Answered, kind, line: Some(line.into()) }
    }

    /// An expected answer that was printed already.
    pub(crate) fn printed() -> Failure {
        Failure { code: Code::Answered, kind: "answered", line: None }
    }

    /// The request was answered with an error, or the machine refused something.
    pub(crate) fn error(kind: &'static str, line: impl Into<String>) -> Failure {
        Failure::new(Code::Answered, kind, line.into())
    }

    /// The command line makes no sense.
    pub(crate) fn usage(line: impl Into<String>) -> Failure {
        Failure::new(Code::Usage, "usage", line.into())
    }

    /// The write may or may not have happened.
    pub(crate) fn outcome_unknown(line: impl Into<String>) -> Failure {
        Failure::new(Code::OutcomeUnknown, "outcome_unknown", line.into())
    }

    /// No node could be reached.
    pub(crate) fn nobody_reachable(line: impl Into<String>) -> Failure {
        Failure::new(Code::NobodyReachable, "nobody_reachable", line.into())
    }

    fn new(code: Code, kind: &'static str, line: String) -> Failure {
        Failure { code, kind, line: Some(format!("error: {line}")) }
    }

    /// The exit code that tells scripts what happened.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Says on standard error what went wrong.
    pub(crate) fn report(&self, json: bool) {
        let Some(line) = &self.line else { return };
        if json {
            let message = line.strip_prefix("error: ").unwrap_or(line);
            eprintln!("{}", serde_json::json!({ "error": self.kind, "message": message }));
        } else {
            eprintln!("{line}");
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}
