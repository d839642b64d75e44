//! Sessions: at most once.
