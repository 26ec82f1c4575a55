"""What tests share: waiting, servers, installations, processes that fork, projects and runs. Imported from
nowhere but tests.
"""
