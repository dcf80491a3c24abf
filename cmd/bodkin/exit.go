package main

import (
	"errors"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous"
)

// Exit codes, as `bodkin help exit-codes` documents them.
const (
	exitOK          = 0
	exitFailed      = 1 // it did not work; trying again may help
	exitConfig      = 2 // the configuration or the command line is wrong
	exitUnreachable = 3 // the daemon or node that was asked does not answer
	exitRefused     = 4 // it answers that one may not
	exitProblems    = 5 // it worked, and found something that is not as it should be
)

// The errors that say more than that something failed.
type (
	// usageError marks a wrong command line or input.
	usageError struct{ error }
	// unreachableError: who was asked did not answer.
	unreachableError struct{ error }
	// refusedError: one may not.
	refusedError struct{ error }
	// problemError: the command did what it should, and what it found is bad. The
	// findings are printed already: the error may be empty.
	problemError struct{ error }
)

func (e usageError) Unwrap() error       { return e.error }
func (e unreachableError) Unwrap() error { return e.error }
func (e refusedError) Unwrap() error     { return e.error }
func (e problemError) Unwrap() error     { return e.error }

// errProblems is for a command whose output says it all.
var errProblems = problemError{errors.New("")}

func exitCode(err error) int {
	var (
		usage       usageError
		unreachable unreachableError
		refused     refusedError
		problem     problemError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, rendezvous.ErrConfig), errors.Is(err, agent.ErrConfig):
		return exitConfig
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.As(err, &refused):
		return exitRefused
	case errors.As(err, &problem):
		return exitProblems
	}
	return exitFailed
}
