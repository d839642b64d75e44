//! One anomaly at a time, planted behind long histories of many clients: each must be rejected,
//! whatever came before it, and the same calls without it must pass.

use base::Random;
use bytes::Bytes;

use super::{check_key, real_history};
use crate::history::{Call, History};

/// When the tail begins: long after all that came before was answered. Nothing in that has an unknown
/// outcome: such a call could take effect in the tail, and explain more than is true.
const LATER: u64 = 1_000_000;

/// What is done to the key at the end, by clients of whom nothing was heard before.
const TAIL: &str = "\
    90 10 =k put =a; -> 20 done v70001
    90 30 =k append =b; -> 40 appended 4 v70002
    91 50 =k get -> 60 =a;b; v70002
    90 70 =k puthash =c -> 80 =a;b; v70003
    91 90 =k get -> 100 =3525466507 v70003
    92 110 =k look -> 120 =a;b; v70002
    92 130 =k look -> 140 =3525466507 v70003
    93 150 =k put =x; -> 190 done v70005
    94 155 =k put =y; -> 180 done v70004
    95 160 =k get -> 170 =3525466507 v70003
    95 200 =k get -> 210 =x; v70005
    96 205 =k get -> 220 =x; v70005
    97 230 =k look 50 -> 240 =x; v70005
    98 250 =k cas v70005 =z; -> 260 swapped v70006
    99 270 =k cas v70005 =w; -> 280 different v70006
    98 290 =k look -> 300 =z; v70006
    99 310 =k append =r; -> refused
    97 320 =k look 30 -> 330 =z; v70006
    98 340 =k delete -> 350 deleted
    99 360 =k delete -> 370 absent
    96 380 =k get -> 390 none v0";

fn behind(random: &mut Random, tail: &str) -> Vec<Call> {
    let mut calls = real_history(random, [6, 300, 1_000_000], [0, 60]);
    for call in History::from_text(tail).unwrap().calls() {
        let mut call = call.clone();
        call.start += LATER;
        if let super::Ending::Answered { at, .. } = &mut call.ending {
            *at += LATER;
        }
        calls.push(call);
    }
    calls
}

/// The tail passes behind random histories, and with these words in it, in this line, never does.
fn rejected(line: &str, wrong: &str) {
    assert_eq!(TAIL.matches(line).count(), 1, "{line}");
    for seed in 0..12 {
        let good = behind(&mut Random::new(seed), TAIL);
        if let Err(violation) = check_key(&Bytes::new(), &good, 400_000) {
            panic!("seed {seed}: {violation}");
        }
        let bad = behind(&mut Random::new(seed), &TAIL.replace(line, wrong));
        let verdict = check_key(&Bytes::new(), &bad, 400_000);
        let is_found = matches!(verdict, Err(super::Violation::NotLinearizable { .. }));
        assert!(is_found, "seed {seed}: {verdict:?} with {wrong}");
    }
}

#[test]
fn planted_stale_read_is_rejected() {
    rejected("91 50 =k get -> 60 =a;b; v70002", "91 50 =k get -> 60 =a; v70001");
    rejected("96 380 =k get -> 390 none v0", "96 380 =k get -> 390 =z; v70006");
}

#[test]
fn planted_read_of_what_is_written_later_is_rejected() {
    rejected("91 50 =k get -> 60 =a;b; v70002", "91 50 =k get -> 60 =3525466507 v70003");
    rejected("92 110 =k look -> 120 =a;b; v70002", "92 110 =k look -> 120 =x; v70005");
}

#[test]
fn planted_lost_update_is_rejected() {
    // Two clients change the same value, and both are told that they did.
    rejected("=w; -> 280 different v70006", "=w; -> 280 swapped v70007");
    // A write was answered, and its effect is not there.
    rejected("90 70 =k puthash =c -> 80 =a;b;", "90 70 =k puthash =c -> 80 =a;");
    rejected("98 340 =k delete -> 350 deleted", "98 340 =k delete -> 350 absent");
}

#[test]
fn planted_double_execution_is_rejected() {
    rejected("91 50 =k get -> 60 =a;b; v70002", "91 50 =k get -> 60 =a;b;b;");
    rejected("appended 4 v70002", "appended 6 v70002");
    rejected("99 360 =k delete -> 370 absent", "99 360 =k delete -> 370 deleted");
    // Executed once, and when it came again answered as if it had been the second.
    rejected("=z; -> 260 swapped v70006", "=z; -> 260 different v70006");
}

#[test]
fn planted_reordered_session_is_rejected() {
    // The client's second read goes back behind its first.
    rejected("92 130 =k look -> 140 =3525466507 v70003", "92 130 =k look -> 140 =a; v70001");
    // It does not see its own write.
    rejected("98 290 =k look -> 300 =z; v70006", "98 290 =k look -> 300 =x; v70005");
    // Two writes of one client take effect in the other order.
    rejected("90 30 =k append =b; -> 40 appended 4", "90 30 =k append =b; -> 40 appended 2");
}

#[test]
fn planted_bounded_read_that_is_too_old_is_rejected() {
    // What it may see was the newest at 180, and 190 at the latest; this was replaced before.
    rejected("97 230 =k look 50 -> 240 =x;", "97 230 =k look 30 -> 240 =y;");
    rejected("97 320 =k look 30 -> 330 =z; v70006", "97 320 =k look 30 -> 330 =x; v70005");
}

#[test]
fn planted_reads_in_different_orders_are_rejected() {
    rejected("96 205 =k get -> 220 =x; v70005", "96 205 =k get -> 220 =y; v70004");
    rejected(
        "95 160 =k get -> 170 =3525466507 v70003",
        "95 156 =k get -> 157 =x; v70005\n95 160 =k get -> 170 =3525466507 v70003",
    );
}

#[test]
fn planted_count_of_changes_that_goes_back_is_rejected() {
    rejected("90 70 =k puthash =c -> 80 =a;b; v70003", "90 70 =k puthash =c -> 80 =a;b; v70001");
    rejected("96 205 =k get -> 220 =x; v70005", "96 205 =k get -> 220 =x; v70006");
    // Two changes are given one count.
    rejected("94 155 =k put =y; -> 180 done v70004", "94 155 =k put =y; -> 180 done v70005");
}

#[test]
fn planted_effect_of_a_refused_call_is_rejected() {
    rejected("97 320 =k look 30 -> 330 =z; v70006", "97 320 =k look 30 -> 330 =z;r;");
}

#[test]
fn planted_answers_of_two_clients_exchanged_are_rejected() {
    rejected(
        "93 150 =k put =x; -> 190 done v70005\n    94 155 =k put =y; -> 180 done v70004",
        "93 150 =k put =x; -> 190 done v70004\n    94 155 =k put =y; -> 180 done v70005",
    );
}
