//! Where the lines of a `dev` come from: a person at a prompt, or a pipe.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::{Cmd, DefaultEditor, ExternalPrinter, KeyEvent};
use tokio::sync::mpsc;

/// What was typed, one thing at a time: the next is read when [`Prompt::next`] asks for it, so
/// that answers stand under their questions.
#[derive(Debug)]
pub(crate) enum Typed {
    /// A line.
    Line(Vec<u8>),
    /// No more lines come.
    End,
}

/// The source of lines. Reading blocks, so it has a thread of its own, which ends with the
/// process.
pub(crate) struct Prompt {
    /// True when a person types.
    interactive: bool,
    asks: std::sync::mpsc::Sender<()>,
    typed: mpsc::Receiver<Typed>,
    waiting: bool,
    notices: Notices,
    /// How the terminal was before a line editor changed it; the editor's thread may be in the
    /// middle of a line when the program ends.
    terminal: Option<Termios>,
}

/// Prints notices without destroying the line being typed.
type Notices = Box<dyn FnMut(String) + Send>;

impl Prompt {
    /// Lines from the terminal, if this program stands on one, else from standard input.
    pub(crate) fn open() -> Prompt {
        let (asks, asked) = std::sync::mpsc::channel();
        let (sender, typed) = mpsc::channel(1);
        let interactive = is_interactive();
        let terminal = if interactive { tcgetattr(io::stdin()).ok() } else { None };
        let mut notices: Notices = Box::new(|text| eprintln!("{text}"));
        let editor = if interactive { editor() } else { None };
        if let Some((editor, printer)) = editor {
            if let Some(mut printer) = printer {
                notices = Box::new(move |text| {
                    if printer.print(format!("{text}\n")).is_err() {
                        eprintln!("{text}");
                    }
                });
            }
            thread::spawn(move || read_terminal(editor, &asked, &sender));
        } else {
            thread::spawn(move || read_pipe(&asked, &sender));
        }
        Prompt { interactive, asks, typed, waiting: false, notices, terminal }
    }

    /// The next line. May be dropped and called again while nothing was typed.
    pub(crate) async fn next(&mut self) -> Typed {
        if !self.waiting {
            if self.asks.send(()).is_err() {
                return Typed::End;
            }
            self.waiting = true;
        }
        let typed = self.typed.recv().await.unwrap_or(Typed::End);
        self.waiting = false;
        typed
    }

    /// Whether a person types.
    pub(crate) fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Says something that was not asked for.
    pub(crate) fn notice(&mut self, text: String) {
        if self.waiting {
            (self.notices)(text);
        } else {
            eprintln!("{text}");
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            // A terminal that is gone needs no restoring.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, terminal);
        }
    }
}

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The words of a line, as a shell would split it; none where a quotation is not closed.
pub(crate) fn words(line: &[u8]) -> Option<Vec<OsString>> {
    Some(shlex::bytes::split(line)?.into_iter().map(OsString::from_vec).collect())
}

fn editor() -> Option<(DefaultEditor, Option<Box<dyn ExternalPrinter + Send>>)> {
    let mut editor = DefaultEditor::new().ok()?;
    editor.bind_sequence(KeyEvent::ctrl('l'), Cmd::ClearScreen);
    let printer = editor.create_external_printer().ok();
    let printer = printer.map(|printer| Box::new(printer) as Box<dyn ExternalPrinter + Send>);
    Some((editor, printer))
}

fn read_terminal(
    mut editor: DefaultEditor,
    asked: &std::sync::mpsc::Receiver<()>,
    typed: &mpsc::Sender<Typed>,
) {
    while asked.recv().is_ok() {
        let next = loop {
            match editor.readline("decree> ") {
                Ok(line) => {
                    // The history is a convenience; a line that does not enter it still runs.
                    let _ = editor.add_history_entry(&line);
                    break Typed::Line(line.into_bytes());
                }
                Err(ReadlineError::Interrupted) => {
                    println!("(`exit` or Ctrl-D stops the cluster)");
                    // Nothing to do if the terminal is gone: the next read ends the loop.
                    let _ = io::stdout().flush();
                }
                Err(_) => break Typed::End,
            }
        };
        if typed.blocking_send(next).is_err() {
            return;
        }
    }
}

fn read_pipe(asked: &std::sync::mpsc::Receiver<()>, typed: &mpsc::Sender<Typed>) {
    let mut input = io::stdin().lock();
    while asked.recv().is_ok() {
        let mut line = Vec::new();
        let next = match input.read_until(b'\n', &mut line) {
            Ok(0) => Typed::End,
            Ok(_) => Typed::Line(line),
            Err(error) => {
                eprintln!("error: cannot read standard input: {error}");
                Typed::End
            }
        };
        if typed.blocking_send(next).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_splits_as_in_a_shell() {
        let words = words(b"put 'a key' \"b c\" # note\n").unwrap();
        assert_eq!(words, ["put", "a key", "b c"]);
        assert!(super::words(b"put 'a\n").is_none());
    }
}
