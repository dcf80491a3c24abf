package main

import "github.com/spf13/cobra"

// group is a part of the command line as `bodkin --help` shows it.
type group struct {
	id, title string
	commands  []*cobra.Command
}

// groups are all commands. A new one is added to its group here.
func groups() []group {
	return []group{
		{"look", "See what is going on:", []*cobra.Command{
			newStatus(), newNodeList(), newPairs(), newPair(), newEvents(), newSAs(),
		}},
		{"mend", "Find out why:", []*cobra.Command{
			newDoctor(), newPunch(), newPing(), newNetcheck(), newForecast(), newBundle(),
		}},
		{"manage", "Say who may do what:", []*cobra.Command{
			newNodeCommand(), newToken(), newCommunity(), newAccess(), newAudit(),
		}},
		{"run", "Run the daemons:", []*cobra.Command{
			newJoin(), newRendezvous(), newAgent(),
		}},
		{"other", "Other:", []*cobra.Command{
			newVersion(), newDocs(),
		}},
	}
}

func addGroups(root *cobra.Command) {
	for _, g := range groups() {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, cmd := range g.commands {
			cmd.GroupID = g.id
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
}
