-- pbxmesh fsconf: remove the calls between nodes, for FusionPBX.
--
-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE
-- Then, on the switch:
--   fs_cli -x 'sofia profile mesh stop'
--   rm -f /var/cache/fusionpbx/dialplan.mesh /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf
--   fs_cli -x 'memcache delete dialplan:mesh'         (with memcached instead of files)
--   fs_cli -x 'memcache delete configuration:acl.conf'
--   fs_cli -x "memcache delete $(hostname):configuration:sofia.conf"
--   fs_cli -x reloadacl
\set ON_ERROR_STOP on
BEGIN;

DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87';
DELETE FROM v_sip_profiles WHERE sip_profile_uuid = 'f1a9e6c3-ac42-5fcf-b153-4981563e7a87';

-- Another node of this database may still need these.
DELETE FROM v_dialplan_details WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_dialplans WHERE dialplan_uuid = '4e813313-7338-54b6-ae1a-2da7e4a25947' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_access_control_nodes WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');
DELETE FROM v_access_controls WHERE access_control_uuid = '045b210c-d76c-5625-8b51-e5604dd226ba' AND NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = 'mesh');

COMMIT;
