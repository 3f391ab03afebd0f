// Package phones plays calls as real phones make them: baresip and Linphone, which find
// their node by the mesh's own name servers, on simulated switches and on real ones.
//
// Everything in it is a test.
package phones
