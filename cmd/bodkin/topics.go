package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// explained are words with what they mean, as a topic lists them.
type explained [][2]string

func (e explained) String() string {
	width := 0
	for _, line := range e {
		width = max(width, len(line[0]))
	}
	var b strings.Builder
	for _, line := range e {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, line[0], line[1])
	}
	return strings.TrimRight(b.String(), "\n")
}

var exitCodes = explained{
	{fmt.Sprint(exitOK), "all is well, or a daemon was ended by SIGTERM or SIGINT"},
	{fmt.Sprint(exitFailed), "it did not work; trying again may help (a port or the store in use, no answer to ping)"},
	{fmt.Sprint(exitConfig), "the command line, a file or the configuration is wrong"},
	{fmt.Sprint(exitUnreachable), "the agent, the rendezvous or the node that was asked does not answer"},
	{fmt.Sprint(exitRefused), "it answers that you may not: no token, a wrong one, or one for reading only"},
	{fmt.Sprint(exitProblems), "it worked, and what it found is not as it should be (doctor, netcheck, punch)"},
}

var environment = explained{
	{envServer, "the rendezvous to ask, as --server; without it, the one on this machine over its unix socket"},
	{envToken, "the access token for it; --token-file keeps it in a file instead"},
	{envCA, "file with the CA that its certificate is checked with, as --ca"},
	{"NO_COLOR", "no colours if set and not empty; --color always overrides it"},
	{"GOGC", "the agent's garbage collector, 40 if not set"},
}

// topics are what `bodkin help TOPIC` explains beside the commands.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{
			Use: "exit-codes", Short: "What the exit codes mean",
			Long: "Every command ends with one of these exit codes:\n\n" + exitCodes.String(),
		},
		{
			Use: "environment", Short: "Which environment variables are heeded",
			Long: "These environment variables are heeded:\n\n" + environment.String(),
		},
		{Use: "output", Short: "How -o and --color work, and what scripts may rely on", Long: outputHelp},
		{
			Use: "files", Short: "Where everything is",
			Long: `  /etc/bodkin/agent.yaml           the agent's configuration
  /etc/bodkin/rendezvous.yaml      the rendezvous'
  /etc/bodkin/ca.crt               the CA of all nodes
  /etc/bodkin/ca.key               its key, on the rendezvous, where that issues certificates
  /etc/bodkin/node.crt, node.key   this node's own
  /etc/bodkin/rendezvous.crt, rendezvous.key
  /run/bodkin/agent.sock           where status, sas and ping ask the agent
  /run/bodkin/rendezvous.sock      where the other commands ask the rendezvous: root
                                   and the group bodkin may
  /var/lib/bodkin                  what must survive a restart

Both daemons read their configuration again on SIGHUP (systemctl reload), log each
key that has changed, and say of those that need a restart that they do.`,
		},
	}
}

const outputHelp = `Commands that print an answer take -o:

  table  for people; may change from version to version
  wide   the same with more columns
  json   for programs
  yaml   the same keys in the same order as json

What scripts may rely on in JSON and YAML: keys are only ever added, so ignore those you do not
know; lists are there even when empty, and in a stable order; times are RFC 3339 in UTC; a number
with a unit has it in its key (elapsedMs, rekeySeconds). What a command prints that asks the
rendezvous is the API's own answer (docs/api.md). With --follow or --watch JSON is one object
after the other.

Colours are used on terminals only. They never carry anything that the words do not say.
--color never or NO_COLOR=1 turns them off, --color always on, for instance for less -R.`
