"""What trainer, server and robot agree on, each fact once. Imports nothing of rlspec but its errors, and no torch.

actions     action spaces with units, rates and gripper; the laws that execute them
features    names of features, of cameras and of the state's numbers
pictures    the letterbox, and the sizes that others expect
messages    keys of requests and answers, and the terms that a server states
wire        messages as bytes, bounded
records     files beside data sets and policies that say what actions mean
policies    what is read off the configs of LeRobot's policies
"""
