-- pbxmesh fsconf: remove the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   fs_cli -x 'sofia profile far stop'
--   rm -f /var/cache/fusionpbx/dialplan.far /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:far'         (with memcached instead of files)
--   fs_cli -x 'memcache delete configuration:acl.conf'
--   fs_cli -x "memcache delete $(hostname):configuration:sofia.conf"
--   fs_cli -x reloadacl
\set ON_ERROR_STOP on
BEGIN;

DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = 'ca49bc4c-138a-5827-be2e-930c27d517d2';
DELETE FROM v_sip_profiles WHERE sip_profile_uuid = 'ca49bc4c-138a-5827-be2e-930c27d517d2';

-- Another node of this database may still need these.
DELETE FROM v_dialplan_details WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_dialplans WHERE dialplan_uuid = 'd5fac4e1-3a8a-5edb-bbd8-32c4287422ce' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');
DELETE FROM v_access_controls WHERE access_control_uuid = '41ec875a-9c65-5910-9c8c-7e00d92e73f0' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'far');

COMMIT;
