package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous"
)

// completionTimeout is how long somebody who pressed the tabulator key waits.
const completionTimeout = 2 * time.Second

// completion offers words for what is being typed; nil for none.
type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeFlag has the shell offer fixed values for a flag.
func completeFlag(cmd *cobra.Command, flag string, values []string) {
	completeFlagWith(cmd, flag, func(context.Context) []string { return values })
}

// completeFlagWith has the shell offer what words returns then.
func completeFlagWith(cmd *cobra.Command, flag string, words func(context.Context) []string) {
	offer := func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return offered(cmd, words), cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, offer); err != nil {
		panic(err) // the flag does not exist: a mistake of the caller's
	}
}

// completeArgs offers words for the first most arguments, each once.
func completeArgs(most int, words func(context.Context) []string) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		left := slices.DeleteFunc(offered(cmd, words), func(w string) bool { return slices.Contains(args, w) })
		return left, cobra.ShellCompDirectiveNoFileComp
	}
}

func offered(cmd *cobra.Command, words func(context.Context) []string) []string {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	return slices.Clone(words(ctx))
}

// ask is get for completion, where what does not work offers nothing.
func (f *rendezvousFlags) ask(ctx context.Context, path string, out any) bool {
	c, err := f.client()
	return err == nil && c.get(ctx, path, nil, out) == nil
}

// nodeNames are the nodes that the rendezvous knows, for completion.
func (f *rendezvousFlags) nodeNames(ctx context.Context) (names []string) {
	var list rendezvous.NodeList
	if f.ask(ctx, "/api/v1/nodes", &list) {
		for _, n := range list.Nodes {
			names = append(names, string(n.Name))
		}
	}
	return names
}

// communityNames are the communities in force, for completion.
func (f *rendezvousFlags) communityNames(ctx context.Context) (names []string) {
	var list rendezvous.CommunityList
	if f.ask(ctx, "/api/v1/communities", &list) {
		for _, c := range list.Communities {
			names = append(names, c.Name)
		}
	}
	return names
}

// completePair offers a node, and then the nodes it is a pair with.
func (f *rendezvousFlags) completePair(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	peers := func(ctx context.Context) (names []string) {
		var list rendezvous.PairList
		f.ask(ctx, "/api/v1/pairs", &list)
		for _, p := range list.Pairs {
			a, b := string(p.Nodes[0]), string(p.Nodes[1])
			switch {
			case len(args) == 0:
				names = append(names, a, b)
			case a == args[0]:
				names = append(names, b)
			case b == args[0]:
				names = append(names, a)
			}
		}
		slices.Sort(names)
		return slices.Compact(names)
	}
	return completeArgs(2, peers)(cmd, args, typed)
}

// peerNames are this node's peers, for completion.
func (f *agentFlags) peerNames(ctx context.Context) (names []string) {
	var s agent.Status
	if f.client().get(ctx, "/v1/status", nil, &s) == nil {
		for _, t := range s.Tunnels {
			names = append(names, string(t.Peer))
		}
	}
	return names
}
